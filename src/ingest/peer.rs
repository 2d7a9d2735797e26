//! Who is on the other end: the peer, or what a trusted proxy says about it.
//!
//! `x-forwarded-for` is believed only from trusted proxies, and then its right-most hop that is not itself one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap};

use crate::config::Cidr;

/// The sender of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address, as far as we can know.
    pub address: IpAddr,
    /// Several senders may share this address: a trusted proxy that names nobody.
    pub is_shared: bool,
    /// The request came from this machine and was not forwarded.
    pub is_local: bool,
}

impl Peer {
    /// Reads the peer that the server noted and what `headers` say.
    #[must_use]
    pub fn of(extensions: &Extensions, headers: &HeaderMap, trusted: &[Cidr]) -> Self {
        match extensions.get::<ConnectInfo<SocketAddr>>() {
            Some(ConnectInfo(socket)) => Self::resolve(socket.ip(), headers, trusted),
            // Not served over TCP: nobody in particular, and certainly not trusted.
            None => Self { address: Ipv4Addr::UNSPECIFIED.into(), is_shared: false, is_local: false },
        }
    }

    fn resolve(peer: IpAddr, headers: &HeaderMap, trusted: &[Cidr]) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
        let is_forwarded = ["x-forwarded-for", "forwarded", "x-real-ip"].iter().any(|name| headers.contains_key(*name));
        let is_local = peer.is_loopback() && !is_forwarded;
        if !is_trusted(peer) {
            return Self { address: peer, is_shared: false, is_local };
        }
        let lines = headers.get_all("x-forwarded-for").iter().rev().filter_map(|line| line.to_str().ok());
        let hops = lines.flat_map(|line| line.rsplit(',')).map(|hop| hop.trim().parse::<IpAddr>());
        for hop in hops {
            match hop {
                Ok(address) if is_trusted(address.to_canonical()) => {}
                Ok(address) => return Self { address: address.to_canonical(), is_shared: false, is_local },
                // What lies left of an unreadable hop is anybody's claim.
                Err(_) => break,
            }
        }
        Self { address: peer, is_shared: true, is_local }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(peer: &str, forwarded: &[&str]) -> (String, bool, bool) {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let mut trusted = Cidr::loopback().to_vec();
        trusted.push(Cidr::parse("10.0.0.0/8").unwrap());
        let peer = Peer::resolve(peer.parse().unwrap(), &headers, &trusted);
        (peer.address.to_string(), peer.is_shared, peer.is_local)
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(resolve("198.51.100.7", &["203.0.113.9"]), ("198.51.100.7".into(), false, false));
        assert_eq!(resolve("127.0.0.1", &["203.0.113.9"]), ("203.0.113.9".into(), false, false));
        assert_eq!(resolve("10.1.2.3", &["1.1.1.1, 203.0.113.9, 10.9.9.9"]), ("203.0.113.9".into(), false, false));
        assert_eq!(resolve("10.1.2.3", &["1.1.1.1", "203.0.113.9"]), ("203.0.113.9".into(), false, false));
        assert_eq!(resolve("::ffff:127.0.0.1", &[]), ("127.0.0.1".into(), true, true));
        assert_eq!(resolve("127.0.0.1", &["1.1.1.1, nonsense"]), ("127.0.0.1".into(), true, false));
    }

    #[test]
    fn ranges_are_checked() {
        for text in ["10.0.0.0/33", "::/129", "ten", "10.0.0.0/-1", ""] {
            assert!(Cidr::parse(text).is_none(), "{text}");
        }
        let all = Cidr::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let one = Cidr::parse("2001:db8::1").unwrap();
        assert!(one.contains("2001:db8::1".parse().unwrap()) && !one.contains("2001:db8::2".parse().unwrap()));
    }
}
