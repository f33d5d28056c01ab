//! IP prefixes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address range; bits beyond the length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// The text is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// Not `ADDRESS/LENGTH`.
    #[error("is not an address and a length, as 198.51.100.0/24 is")]
    Syntax,
    /// The address reaches beyond the length.
    #[error("has address bits beyond its length")]
    HostBits,
}

impl Prefix {
    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all addresses in the range share: up to 32 (IPv4) or 128 (IPv6).
    pub const fn prefix_len(&self) -> u8 {
        self.len
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let (address, len) = text.split_once('/').ok_or(InvalidPrefix::Syntax)?;
        let address: IpAddr = address.parse().map_err(|_| InvalidPrefix::Syntax)?;
        let len: u8 = len.parse().map_err(|_| InvalidPrefix::Syntax)?;
        let (bits, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u8),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let host_len = width.checked_sub(len).ok_or(InvalidPrefix::Syntax)?;
        let host_mask = 1_u128.checked_shl(u32::from(host_len)).map_or(u128::MAX, |bit| bit - 1);
        if bits & host_mask != 0 {
            return Err(InvalidPrefix::HostBits);
        }
        Ok(Self { address, len })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_come_back() {
        for text in
            ["0.0.0.0/0", "100.96.0.0/16", "192.0.2.1/32", "::/0", "fd6e:7765::/64", "fd6e:7765::2/128"]
        {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_told_apart() {
        for text in ["", "192.0.2.0", "192.0.2.0/33", "::/129", "192.0.2.0/", "x/8", "192.0.2.0/256"] {
            assert_eq!(text.parse::<Prefix>(), Err(InvalidPrefix::Syntax), "{text}");
        }
        for text in ["192.0.2.1/24", "0.0.0.1/0", "::1/0", "fd6e:7765::1/64"] {
            assert_eq!(text.parse::<Prefix>(), Err(InvalidPrefix::HostBits), "{text}");
        }
    }
}
