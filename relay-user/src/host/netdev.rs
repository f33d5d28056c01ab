//! What drivers say of XDP: the `netdev` family of generic netlink, Linux 6.3 and later
//! (Documentation/netlink/specs/netdev.yaml).

use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator, Parseable,
};

use super::netlink::{NetlinkError, ask};

/// `NETLINK_GENERIC` of uapi/linux/netlink.h.
const GENERIC: isize = 16;
/// Of uapi/linux/genetlink.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Of uapi/linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 8;

/// What a driver can do with XDP, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XdpFeatures {
    /// Runs programs.
    pub(crate) native: bool,
    /// Hands frames on to AF_XDP sockets.
    pub(crate) redirect: bool,
    /// Works on an AF_XDP socket's frames itself.
    pub(crate) zero_copy: bool,
    /// Descriptors that one packet may have in zero-copy, where the kernel tells.
    pub(crate) zero_copy_segments: Option<u32>,
}

/// Asks for the features of the interface with index `index`.
///
/// # Errors
/// [`NetlinkError`].
pub(crate) fn xdp_features(index: u32) -> Result<XdpFeatures, NetlinkError> {
    let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, b"netdev\0".to_vec());
    let answer = match ask_generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name) {
        Err(NetlinkError::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
            return Err(NetlinkError::NoFamily);
        }
        answer => answer?,
    };
    let family = value(&answer, CTRL_ATTR_FAMILY_ID).and_then(|value| value.try_into().ok());
    let family = family.map(u16::from_ne_bytes).ok_or(NetlinkError::NoAnswer)?;
    let index = DefaultNla::new(NETDEV_A_DEV_IFINDEX, index.to_ne_bytes().to_vec());
    let answer = ask_generic(family, NETDEV_CMD_DEV_GET, index)?;
    read(&answer).ok_or(NetlinkError::NoAnswer)
}

fn read(answer: &Generic) -> Option<XdpFeatures> {
    let bits = value(answer, NETDEV_A_DEV_XDP_FEATURES).and_then(|value| value.try_into().ok());
    let bits = bits.map(u64::from_ne_bytes)?;
    let segments = value(answer, NETDEV_A_DEV_XDP_ZC_MAX_SEGS).and_then(|value| value.try_into().ok());
    Some(XdpFeatures {
        native: bits & NETDEV_XDP_ACT_BASIC != 0,
        redirect: bits & NETDEV_XDP_ACT_REDIRECT != 0,
        zero_copy: bits & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0,
        zero_copy_segments: segments.map(u32::from_ne_bytes),
    })
}

fn value(message: &Generic, kind: u16) -> Option<Vec<u8>> {
    let attribute = message.attributes.iter().find(|attribute| attribute.kind() == kind)?;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(value)
}

/// A message of generic netlink.
#[derive(Debug, PartialEq, Eq)]
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // struct genlmsghdr: command, version, two reserved bytes.
        buffer[..4].copy_from_slice(&[self.command, 1, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[4..]);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let [command, _, _, _, attributes @ ..] = payload else {
            return Err(DecodeError::from("shorter than its header"));
        };
        let attributes = NlasIterator::new(attributes)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, _>>()?;
        Ok(Self { family: header.message_type, command: *command, attributes })
    }
}

fn ask_generic(family: u16, command: u8, attribute: DefaultNla) -> Result<Generic, NetlinkError> {
    let mut message = NetlinkMessage::from(Generic { family, command, attributes: vec![attribute] });
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    match ask(GENERIC, message)? {
        NetlinkPayload::InnerMessage(answer) => Ok(answer),
        other => Err(NetlinkError::of(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_bits() {
        let attribute = |kind, value: &[u8]| DefaultNla::new(kind, value.to_vec());
        let answer = |bits: u64| Generic {
            family: 30,
            command: NETDEV_CMD_DEV_GET,
            attributes: vec![
                attribute(NETDEV_A_DEV_IFINDEX, &7u32.to_ne_bytes()),
                attribute(NETDEV_A_DEV_XDP_FEATURES, &bits.to_ne_bytes()),
                attribute(NETDEV_A_DEV_XDP_ZC_MAX_SEGS, &5u32.to_ne_bytes()),
            ],
        };
        let features = read(&answer(0x0b)).unwrap();
        assert!(features.native && features.redirect && features.zero_copy);
        assert_eq!(features.zero_copy_segments, Some(5));
        let features = read(&answer(0x23)).unwrap();
        assert!(features.native && features.redirect && !features.zero_copy);
        assert_eq!(read(&Generic { family: 30, command: 1, attributes: Vec::new() }), None);
    }

    #[test]
    fn messages_survive_the_way() {
        let mut message = NetlinkMessage::from(Generic {
            family: 30,
            command: 1,
            attributes: vec![DefaultNla::new(1, vec![1, 2, 3]), DefaultNla::new(2, vec![])],
        });
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        assert_eq!(NetlinkMessage::<Generic>::deserialize(&bytes).unwrap(), message);
    }

    #[test]
    fn the_kernel_answers_where_it_can() {
        let index = super::super::link::find("lo").expect("netlink").expect("the loopback").index;
        match xdp_features(index) {
            // The loopback runs programs in the generic hook only.
            Ok(features) => assert!(!features.native && !features.zero_copy, "{features:?}"),
            Err(error) => assert!(matches!(error, NetlinkError::NoFamily), "{error}"),
        }
    }
}
