//! Which addresses may be connected to where somebody else chose the URL: an endpoint of outbound webhooks, a request
//! that a function asks for. Otherwise anybody gets us to talk to machines that only we can reach.
//!
//! | address | https | http |
//! |---|---|---|
//! | in WEBHOOK_ALLOWED_SUBNETS | yes | yes |
//! | public | yes | with [`Guard::with_http`] |
//! | private, loopback, link-local, metadata, multicast, reserved | no | no |
//!
//! # Invariants
//! 1. A name is resolved once, by the client that connects to what was checked: no second look-up could say something
//!    else. A name that has one refused address is refused altogether.
//! 2. A host that is an address, however it is written, is never resolved: [`Guard::check_literal`] judges it before
//!    each request.
//! 3. No client made here follows a redirect by itself, and none asks a proxy: whoever follows one judges it anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Url, redirect};

use crate::config::Cidr;

/// Why an address is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only machines near us are there.
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
    /// Anybody on the way could read and change it.
    #[error("http is only for addresses of WEBHOOK_ALLOWED_SUBNETS; use https")]
    PlainHttp,
    /// The name leads nowhere.
    #[error("the name has no address")]
    NoAddress,
}

impl Refused {
    /// What the guard said, where that is why a request failed.
    #[must_use]
    pub fn of(error: &reqwest::Error) -> Option<&Self> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(next) = cause {
            if let Some(refused) = next.downcast_ref::<Self>() {
                return Some(refused);
            }
            cause = next.source();
        }
        None
    }
}

/// The rules. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allowed: Arc<[Cidr]>,
    is_http_taken: bool,
}

impl Guard {
    /// With exceptions.
    #[must_use]
    pub fn new(allowed: &[Cidr]) -> Self {
        Self { allowed: allowed.into(), is_http_taken: false }
    }

    /// The same, with plain http to public addresses too.
    #[must_use]
    pub fn with_http(self) -> Self {
        Self { is_http_taken: true, ..self }
    }

    /// A client that connects to checked addresses alone, with https or with http.
    pub fn client(&self, is_https: bool) -> ClientBuilder {
        let resolver = GuardedResolver { guard: self.clone(), is_https };
        Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .https_only(is_https)
            .dns_resolver(Arc::new(resolver))
            .user_agent(concat!("system-bus/", env!("CARGO_PKG_VERSION")))
    }

    /// Whether an address may be connected to.
    pub fn check(&self, address: IpAddr, is_https: bool) -> Result<(), Refused> {
        if self.allowed.iter().any(|range| range.contains(address)) {
            return Ok(());
        }
        match (is_public(address), is_https || self.is_http_taken) {
            (true, true) => Ok(()),
            (true, false) => Err(Refused::PlainHttp),
            (false, _) => Err(Refused::NotPublic(address)),
        }
    }

    /// What can be said of a URL without asking for addresses: all of it where the host is an address.
    pub fn check_literal(&self, url: &Url) -> Result<(), Refused> {
        let is_https = url.scheme() == "https";
        let host = url.host_str().unwrap_or_default();
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => self.check(address, is_https),
            // Every address of the name would be refused.
            Err(_) if !is_https && !self.is_http_taken && self.allowed.is_empty() => Err(Refused::PlainHttp),
            Err(_) => Ok(()),
        }
    }

    /// Every address of a name, or why it is refused.
    async fn resolve(
        &self,
        name: &str,
        is_https: bool,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
        for address in &found {
            self.check(address.ip(), is_https)?;
        }
        if found.is_empty() {
            return Err(Refused::NoAddress.into());
        }
        Ok(found)
    }
}

/// Resolves names for the HTTP client, and answers only with addresses that were checked.
#[derive(Debug, Clone)]
struct GuardedResolver {
    guard: Guard,
    is_https: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.guard.resolve(name.as_str(), this.is_https).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether the whole internet can reach an address (IANA's special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

/// Only 2000::/3 is assigned to the internet; what in it translates to IPv4 or is for documents is refused too.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let (first, second) = (segments[0], segments[1]);
    let is_global = first & 0xe000 == 0x2000;
    let is_protocol = first == 0x2001 && second < 0x0200;
    let is_document = (first == 0x2001 && second == 0x0db8) || first & 0xfff0 == 0x3ff0;
    is_global && !is_protocol && !is_document && first != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each range that is not the internet's, with an address of it or two.
    const REFUSED: [(&str, &[&str]); 30] = [
        ("this network", &["0.0.0.0", "0.1.2.3"]),
        ("private", &["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"]),
        ("shared by carriers (CGNAT), with a cloud's metadata", &["100.64.0.1", "100.127.255.255", "100.100.100.200"]),
        ("loopback", &["127.0.0.1", "127.9.9.9"]),
        ("link-local, with the metadata of clouds", &["169.254.0.1", "169.254.169.254", "169.254.170.2"]),
        ("protocol assignments, with another cloud's metadata", &["192.0.0.1", "192.0.0.192"]),
        ("documentation", &["192.0.2.1", "198.51.100.7", "203.0.113.5"]),
        ("relays of 6to4", &["192.88.99.1"]),
        ("benchmarks", &["198.18.0.1", "198.19.255.255"]),
        ("multicast", &["224.0.0.1", "239.1.1.1"]),
        ("reserved and broadcast", &["240.0.0.1", "255.255.255.255"]),
        ("IPv6 unspecified", &["::"]),
        ("IPv6 loopback", &["::1"]),
        ("IPv4 mapped", &["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0"]),
        ("IPv4 translated", &["::ffff:0:10.0.0.1"]),
        ("IPv4 compatible", &["::127.0.0.1", "::8.8.8.8"]),
        ("NAT64", &["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b::a9fe:a9fe"]),
        ("NAT64 of one's own", &["64:ff9b:1::a00:1"]),
        ("discard", &["100::1"]),
        ("Teredo", &["2001::1"]),
        ("IPv6 benchmarks", &["2001:2::1"]),
        ("ORCHID", &["2001:20::1"]),
        ("IPv6 documentation", &["2001:db8::1", "3fff::1"]),
        ("6to4, of any address", &["2002:7f00:1::", "2002:808:808::"]),
        ("segment routing", &["5f00::1"]),
        ("unique local, with the metadata of clouds", &["fc00::1", "fd00:ec2::254", "fd20:ce::254"]),
        ("IPv6 link-local", &["fe80::1", "febf::1"]),
        ("site-local", &["fec0::1"]),
        ("IPv6 multicast", &["ff02::1", "ff0e::1"]),
        ("unassigned", &["4000::1", "e000::1"]),
    ];

    const PUBLIC: [&str; 12] = [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "192.0.1.1",
        "198.20.0.1",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:1.1.1.1",
    ];

    #[test]
    fn only_what_the_whole_internet_reaches_is_public() {
        for (range, addresses) in REFUSED {
            for address in addresses {
                assert!(!is_public(address.parse().unwrap()), "{range}: {address}");
            }
        }
        for public in PUBLIC {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn urls_with_an_address_are_judged_at_once_however_it_is_written() {
        let (closed, open) = (Guard::default(), Guard::new(&Cidr::loopback()));
        let judge = |guard: &Guard, url: &str| guard.check_literal(&Url::parse(url).unwrap()).is_ok();
        for url in [
            "https://127.0.0.1/",
            "https://127.0.0.1./",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://017700000001/",
            "https://%31%32%37.0.0.1/",
            "https://\u{ff11}27.0.0.1/",
            "https://127\u{3002}0.0.1/",
            "https://example.com@127.0.0.1/",
            "https://8.8.8.8:80@127.0.0.1:443/",
            "https:\\\\127.0.0.1\\@example.com/",
            "https://[::1]/",
            "https://[0:0:0:0:0:0:0:1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
        ] {
            assert!(!judge(&closed, url) && judge(&open, url), "{url}");
        }
        for (range, addresses) in REFUSED {
            for address in addresses {
                let host = if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
                assert!(!judge(&closed, &format!("https://{host}/")), "{range}: {address}");
            }
        }
        assert!(judge(&closed, "https://example.com/") && !judge(&closed, "http://example.com/"));
        assert!(judge(&open, "http://127.0.0.1:3000/") && !judge(&open, "http://1.1.1.1/"));
        assert!(judge(&closed, "https://1.1.1.1/") && judge(&closed, "https://127.0.0.1@1.1.1.1/"));
    }

    #[test]
    fn plain_http_leads_to_public_addresses_where_it_is_taken_and_to_no_others() {
        let guard = Guard::default().with_http();
        let judge = |url: &str| guard.check_literal(&Url::parse(url).unwrap());
        assert!(judge("http://1.1.1.1/").is_ok() && judge("http://example.com/").is_ok());
        assert!(matches!(judge("http://169.254.169.254/latest/meta-data"), Err(Refused::NotPublic(_))));
    }

    #[test]
    fn an_exception_opens_its_range_and_nothing_beside_it() {
        let guard = Guard::new(&[Cidr::parse("10.1.0.0/16").unwrap(), Cidr::parse("fd00:1::/32").unwrap()]);
        let is_open = |address: &str| guard.check(address.parse().unwrap(), false).is_ok();
        for open in ["10.1.0.1", "10.1.255.255", "::ffff:10.1.2.3", "fd00:1::5"] {
            assert!(is_open(open), "{open}");
        }
        for closed in ["10.0.255.255", "10.2.0.1", "fd00:2::1", "64:ff9b::a01:203", "2002:a01:203::"] {
            assert!(!is_open(closed), "{closed}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_refused_address_is_refused() {
        assert!(Guard::default().resolve("localhost", true).await.is_err());
        assert!(!Guard::new(&Cidr::loopback()).resolve("localhost", false).await.unwrap().is_empty());
        // The client itself connects to nothing that was not checked, and says why.
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = Guard::default().with_http().client(false).build().unwrap();
        let error = client.get(format!("http://localhost:{port}/")).send().await.unwrap_err();
        assert!(matches!(Refused::of(&error), Some(Refused::NotPublic(_))), "{error:?}");
    }
}
