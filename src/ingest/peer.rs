//! Who is on the other end: the peer, or what a trusted proxy says about it.
//!
//! `x-forwarded-for` is believed only from trusted proxies, and then its right-most hop that is not itself one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap};

/// A range of addresses, written `10.0.0.0/8` or as one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// The loopback ranges of both families.
    #[must_use]
    pub const fn loopback() -> [Self; 2] {
        [
            Self { address: IpAddr::V4(Ipv4Addr::LOCALHOST), prefix: 8 },
            Self { address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), prefix: 128 },
        ]
    }

    /// Whether `address` lies in this range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let distance = own.to_bits() ^ other.to_bits();
                distance.checked_shr(32 - self.prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let distance = own.to_bits() ^ other.to_bits();
                distance.checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// The text is not an address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address range such as 10.0.0.0/8")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.trim().split_once('/').map_or((text.trim(), None), |(a, p)| (a, Some(p)));
            let address: IpAddr = address.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
            (prefix <= longest).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| ParseNetworkError(text.to_owned()))
    }
}

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
    pub fn of(extensions: &Extensions, headers: &HeaderMap, trusted: &[Network]) -> Self {
        match extensions.get::<ConnectInfo<SocketAddr>>() {
            Some(ConnectInfo(socket)) => Self::resolve(socket.ip(), headers, trusted),
            // Not served over TCP: nobody in particular, and certainly not trusted.
            None => Self { address: Ipv4Addr::UNSPECIFIED.into(), is_shared: false, is_local: false },
        }
    }

    fn resolve(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> Self {
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
        let mut trusted = Network::loopback().to_vec();
        trusted.push("10.0.0.0/8".parse().unwrap());
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
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let one: Network = "2001:db8::1".parse().unwrap();
        assert!(one.contains("2001:db8::1".parse().unwrap()) && !one.contains("2001:db8::2".parse().unwrap()));
    }
}
