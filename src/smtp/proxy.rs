//! The header of the PROXY protocol, version 1 (text) and 2 (binary), by which a load balancer tells who the client
//! is (HAProxy's proxy-protocol.txt). Read only on listeners that are configured for it, before the greeting.
//!
//! Strict: what is not such a header, or is longer than its bound, is an error, and the connection must be closed
//! without a word, since whoever sent it is no proxy.

use crate::limits::{PROXY_V1_OCTETS_MAX, PROXY_V2_BODY_OCTETS_MAX};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEAD_OCTETS: usize = 16;
/// Both addresses and ports of IPv6, the longest that is looked at.
const V2_ADDRESSES_OCTETS_MAX: usize = 36;

/// What was read was no PROXY header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NotProxied;

/// Reads one header from any pieces.
#[derive(Debug)]
pub struct ProxyReader {
    /// The header as far as it is looked at.
    held: [u8; PROXY_V1_OCTETS_MAX],
    held_len: u8,
    /// Octets of a version 2 header beyond those, still to be skipped.
    skip: u16,
}

const _: () = assert!(V2_HEAD_OCTETS + V2_ADDRESSES_OCTETS_MAX <= PROXY_V1_OCTETS_MAX);
const _: () = assert!(PROXY_V1_OCTETS_MAX <= u8::MAX as usize && PROXY_V2_BODY_OCTETS_MAX <= u16::MAX as usize);

/// What the octets held so far amount to.
enum Progress {
    More,
    /// The header is known but for octets that are only skipped.
    Known {
        skip: u16,
    },
}

impl ProxyReader {
    /// At the start of a connection.
    pub fn new() -> ProxyReader {
        ProxyReader { held: [0; PROXY_V1_OCTETS_MAX], held_len: 0, skip: 0 }
    }

    /// Takes bytes up to the end of the header and says how many. Once it is whole: the client, or None if the proxy
    /// speaks for itself (LOCAL) or does not know (UNKNOWN, or a family without IP addresses), when the peer of the
    /// connection counts as the client.
    pub fn handle_input(&mut self, input: &[u8]) -> Result<(usize, Option<Option<SocketAddr>>), NotProxied> {
        for (place, &octet) in input.iter().enumerate() {
            if self.skip > 0 {
                self.skip -= 1;
                if self.skip == 0 {
                    return Ok((place + 1, Some(self.client()?)));
                }
                continue;
            }
            let slot = self.held.get_mut(usize::from(self.held_len)).ok_or(NotProxied)?;
            *slot = octet;
            self.held_len += 1;
            match self.progress()? {
                Progress::More => {}
                Progress::Known { skip: 0 } => return Ok((place + 1, Some(self.client()?))),
                Progress::Known { skip } => self.skip = skip,
            }
        }
        Ok((input.len(), None))
    }

    fn header(&self) -> &[u8] {
        &self.held[..usize::from(self.held_len)]
    }

    /// Called for each octet held, so that the first wrong one is found at once.
    fn progress(&self) -> Result<Progress, NotProxied> {
        let header = self.header();
        let signature = &header[..header.len().min(V2_SIGNATURE.len())];
        if V2_SIGNATURE.starts_with(signature) {
            return self.progress_v2();
        }
        if !b"PROXY ".starts_with(&header[..header.len().min(6)]) {
            return Err(NotProxied);
        }
        match header {
            [.., b'\r', b'\n'] => Ok(Progress::Known { skip: 0 }),
            [.., b'\n'] | [.., b'\r', _] => Err(NotProxied),
            _ if header.len() == PROXY_V1_OCTETS_MAX => Err(NotProxied),
            _ => Ok(Progress::More),
        }
    }

    fn progress_v2(&self) -> Result<Progress, NotProxied> {
        let header = self.header();
        if header.len() < V2_HEAD_OCTETS {
            return Ok(Progress::More);
        }
        let body = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if body > PROXY_V2_BODY_OCTETS_MAX {
            return Err(NotProxied);
        }
        let looked_at = body.min(V2_ADDRESSES_OCTETS_MAX);
        if header.len() < V2_HEAD_OCTETS + looked_at {
            // Command and family are checked before anything else is read.
            self.client_v2(&[0; V2_ADDRESSES_OCTETS_MAX][..looked_at])?;
            return Ok(Progress::More);
        }
        Ok(Progress::Known { skip: (body - looked_at) as u16 })
    }

    fn client(&self) -> Result<Option<SocketAddr>, NotProxied> {
        let header = self.header();
        if header.starts_with(V2_SIGNATURE) { self.client_v2(&header[V2_HEAD_OCTETS..]) } else { client_v1(header) }
    }

    fn client_v2(&self, body: &[u8]) -> Result<Option<SocketAddr>, NotProxied> {
        let header = self.header();
        match (header[12], header[13]) {
            // LOCAL: whatever the family says is to be ignored.
            (0x20, _) => Ok(None),
            // TCP over IPv4: source and destination addresses, source and destination ports.
            (0x21, 0x11) => match body.first_chunk::<12>() {
                Some(b) => {
                    let address = Ipv4Addr::new(b[0], b[1], b[2], b[3]);
                    Ok(Some(SocketAddr::new(IpAddr::V4(address), u16::from_be_bytes([b[8], b[9]]))))
                }
                None => Err(NotProxied),
            },
            (0x21, 0x21) => match (body.first_chunk::<16>(), body.first_chunk::<V2_ADDRESSES_OCTETS_MAX>()) {
                (Some(address), Some(b)) => {
                    let address = Ipv6Addr::from(*address);
                    Ok(Some(SocketAddr::new(IpAddr::V6(address), u16::from_be_bytes([b[32], b[33]]))))
                }
                _ => Err(NotProxied),
            },
            // Unspecified and Unix sockets: a true header that names nobody.
            (0x21, 0x00 | 0x31) => Ok(None),
            _ => Err(NotProxied),
        }
    }
}

impl Default for ProxyReader {
    fn default() -> ProxyReader {
        ProxyReader::new()
    }
}

/// "PROXY TCP4 SOURCE DESTINATION PORT PORT\r\n", "PROXY TCP6 …" or "PROXY UNKNOWN …".
fn client_v1(header: &[u8]) -> Result<Option<SocketAddr>, NotProxied> {
    let text = std::str::from_utf8(header).map_err(|_| NotProxied)?;
    let text = text.strip_suffix("\r\n").ok_or(NotProxied)?;
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(NotProxied);
    word()?;
    let family = word()?;
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let (source, destination, source_port, destination_port) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(NotProxied);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| NotProxied),
        "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| NotProxied),
        _ => Err(NotProxied),
    };
    address(destination)?;
    port(destination_port)?;
    Ok(Some(SocketAddr::new(address(source)?, port(source_port)?)))
}

fn port(text: &str) -> Result<u16, NotProxied> {
    let plain = text.bytes().all(|octet| octet.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| NotProxied) } else { Err(NotProxied) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Answer = Result<(usize, Option<Option<SocketAddr>>), NotProxied>;

    fn read(input: &[u8]) -> Answer {
        let whole = ProxyReader::new().handle_input(input);
        assert_eq!(whole, read_split(input, &[1]));
        whole
    }

    fn read_split(input: &[u8], cuts: &[usize]) -> Answer {
        let mut reader = ProxyReader::new();
        let mut done = 0;
        for cut in cuts.iter().cycle() {
            if done == input.len() {
                break;
            }
            let (consumed, answer) = reader.handle_input(&input[done..(done + cut).min(input.len())])?;
            done += consumed;
            if answer.is_some() {
                return Ok((done, answer));
            }
        }
        Ok((done, None))
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend_from_slice(&[command, family]);
        header.extend_from_slice(&(body.len() as u16).to_be_bytes());
        header.extend_from_slice(body);
        header
    }

    #[test]
    fn version_1() {
        let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n";
        let client = "192.0.2.7:56324".parse().unwrap();
        assert_eq!(read(header), Ok((header.len(), Some(Some(client)))));
        assert_eq!(read(&[&header[..], b"EHLO x\r\n"].concat()), Ok((header.len(), Some(Some(client)))));
        let header = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n";
        assert_eq!(read(header), Ok((header.len(), Some(Some("[2001:db8::7]:1".parse().unwrap())))));
        assert_eq!(read(b"PROXY UNKNOWN\r\n"), Ok((15, Some(None))));
        assert_eq!(read(b"PROXY UNKNOWN ffff::1 whatever\r\n"), Ok((32, Some(None))));
        assert_eq!(read(b"PROXY TCP4 192.0.2.7"), Ok((20, None)));
        for bad in [
            &b"EHLO x\r\n"[..],
            b"PROXY\r\n",
            b"PROXY \r\n",
            b"PROXY TCP4\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25 1\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 056 25\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +5 25\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1  25\r\n",
            b"PROXY TCP4 2001:db8::7 198.51.100.1 5 25\r\n",
            b"PROXY TCP4 192.0.2.7 x 5 25\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 5 25\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5 25\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5 25\rx",
            b"proxy UNKNOWN\r\n",
        ] {
            assert_eq!(read(bad), Err(NotProxied), "{}", bad.escape_ascii());
        }
        let long = [b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat();
        assert_eq!(read(&long), Err(NotProxied));
        let fits = [b"PROXY UNKNOWN ", &[b'x'; PROXY_V1_OCTETS_MAX - 16][..], b"\r\n"].concat();
        assert_eq!(read(&fits), Ok((PROXY_V1_OCTETS_MAX, Some(None))));
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x1f, 0x90, 0, 25];
        let client: SocketAddr = "192.0.2.7:8080".parse().unwrap();
        assert_eq!(read(&v2(0x21, 0x11, &v4)), Ok((28, Some(Some(client)))));
        let with_values = [&v4[..], &[0x20; 300]].concat();
        let header = v2(0x21, 0x11, &with_values);
        assert_eq!(read(&header), Ok((header.len(), Some(Some(client)))));
        let mut v6 = [0u8; 36];
        v6[..2].copy_from_slice(&[0x20, 0x01]);
        v6[15] = 9;
        v6[33] = 7;
        assert_eq!(read(&v2(0x21, 0x21, &v6)), Ok((52, Some(Some("[2001::9]:7".parse().unwrap())))));
        assert_eq!(read(&v2(0x20, 0x00, b"")), Ok((16, Some(None))));
        assert_eq!(read(&v2(0x20, 0x11, &v4)), Ok((28, Some(None))));
        assert_eq!(read(&v2(0x21, 0x31, &[0; 216])), Ok((232, Some(None))));
        assert_eq!(read(&v2(0x21, 0x00, b"")), Ok((16, Some(None))));
        for bad in [
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &v6[..35]),
            v2(0x22, 0x11, &v4),
            v2(0x11, 0x11, &v4),
            v2(0x21, 0x12, &v4),
            v2(0x21, 0x11, &[0; PROXY_V2_BODY_OCTETS_MAX + 1]),
        ] {
            assert_eq!(read(&bad), Err(NotProxied));
        }
        assert_eq!(read(&v2(0x20, 0x00, &[0; PROXY_V2_BODY_OCTETS_MAX])).unwrap().0, 16 + PROXY_V2_BODY_OCTETS_MAX);
    }

    proptest! {
        #[test]
        fn any_split_reads_the_same(
            header in prop_oneof![
                "PROXY (TCP4 192\\.0\\.2\\.1 192\\.0\\.2\\.2 [0-9]{1,5} 25|UNKNOWN[ x]{0,90})\r\nEHLO".prop_map(String::into_bytes),
                (prop_oneof![Just(0x20u8), Just(0x21u8), any::<u8>()], prop_oneof![Just(0x11u8), Just(0x21u8), any::<u8>()],
                    proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(command, family, body)| v2(command, family, &body)),
                proptest::collection::vec(any::<u8>(), 0..40),
            ],
            cuts in proptest::collection::vec(1usize..20, 1..20),
        ) {
            prop_assert_eq!(ProxyReader::new().handle_input(&header), read_split(&header, &cuts));
        }
    }
}
