//! Fuzz targets: what peers, wires, programs and files may hold. No parser panics, and what one lets through is what it
//! says it is.
//!
//! `cargo test` gives each target inputs by chance; how they are to be guided by coverage is open
//! (docs/decisions/0031-fuzz-targets-in-tests.md).

use std::path::Path;

use bolero::check;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use relay_common::classify::{Ports, Verdict, classify, locate};
use relay_common::cursor::{Cursor as _, SliceCursor};
use relay_common::wire::{
    CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, DATA_LEN, DatagramType, LAYER_FIELDS_LEN, LINK_HEADER_LEN,
    LayerFields, LinkHeader,
};
use relay_user::config::{ClientConfig, NetworkDocument, RelayConfig};
use relay_user::crypto::HandshakeRole;
use relay_user::crypto::datagram::{HsInit, HsResp, Mac1Key, Retry};
use relay_user::edge::ip::Inner;
use relay_user::edge::packing::MAX_PACKET;
use relay_user::edge::rewrite::{Side, clamp_mss, rewrite};
use relay_user::edge::{BlockKind, Packer, Reassembler};
use relay_user::observe::capture::{self, Limits, LinkType, Seen, look};

/// Inputs of a target in `cargo test`.
const INPUTS: usize = 20_000;
const PORT: u16 = 7443;

/// A place and what stands there instead; and where the rest is cut off, if it is.
type Damage = (Vec<(u16, u8)>, Option<u16>);

/// `whole` with `damage`, every second change of it among the first 96 bytes, where headers are.
fn damaged(whole: &[u8], (changes, cut): &Damage) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (nth, (place, value)) in changes.iter().enumerate() {
        let reach = if nth % 2 == 0 { bytes.len().min(96) } else { bytes.len() };
        bytes[usize::from(*place) % reach] = *value;
    }
    bytes.truncate(cut.map_or(usize::MAX, |cut| usize::from(cut) % (whole.len() + 1)));
    bytes
}

/// One of `wholes` by `number`, damaged.
fn one_of(wholes: &[Vec<u8>], number: u8, damage: &Damage) -> Vec<u8> {
    damaged(&wholes[usize::from(number) % wholes.len()], damage)
}

/// A UDP datagram to [`PORT`] over IPv4 and over IPv6.
fn packets(payload: &[u8]) -> [Vec<u8>; 2] {
    let length = u16::try_from(payload.len()).expect("short") + 8;
    let udp = [&[40_000, PORT, length, 0].map(u16::to_be_bytes).concat()[..], payload].concat();
    let [high, low] = (length + 20).to_be_bytes();
    let v4 = [&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2][..], &udp];
    let [high, low] = length.to_be_bytes();
    let host = |last| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
    let v6 = [&[0x60, 0, 0, 0, high, low, 17, 64][..], &host(1), &host(2), &udp];
    [v4.concat(), v6.concat()]
}

/// Ethernet frames with a cell, one of them behind a VLAN tag.
fn frames() -> Vec<Vec<u8>> {
    let mut cell = [7; CELL_LEN];
    cell[..LINK_HEADER_LEN].copy_from_slice(&LinkHeader { receiver_index: 5, counter: 9 }.encode());
    let [v4, v6] = packets(&cell);
    let frame = |between: &[u8], packet: &[u8]| [&[2; 12], between, packet].concat();
    vec![frame(&[8, 0], &v4), frame(&[0x86, 0xdd], &v6), frame(&[0x81, 0, 0, 7, 8, 0], &v4)]
}

#[test]
fn frames_are_found_whole_or_not_at_all() {
    let wholes = frames();
    let place = |frame: &[u8]| locate(&mut SliceCursor::new(frame), Ports::from(PORT));
    assert!(wholes.iter().all(|frame| place(frame).is_ok()));
    let links = [LinkType::Ethernet, LinkType::Raw, LinkType::Cooked, LinkType::Cooked2];
    check!().with_iterations(INPUTS).with_type::<(u8, Damage)>().for_each(|(number, damage)| {
        let frame = one_of(&wholes, *number, damage);
        let verdict = classify(SliceCursor::new(&frame), Ports::from(PORT), |_, _| None);
        assert!(!matches!(verdict, Verdict::Redirect { .. }), "nobody has a session");
        if let Ok(datagram) = place(&frame) {
            let end = usize::from(datagram.payload_offset) + usize::from(datagram.payload_len);
            assert!(frame.len() >= end || matches!(verdict, Verdict::Drop(_)), "cut off: {verdict:?}");
        }
        if let Verdict::Handshake(kind) = verdict {
            let datagram = place(&frame).expect("it was found before");
            assert_eq!(usize::from(datagram.payload_len), kind.datagram_len());
        }
        for link in links {
            if let Seen::Udp(datagram) = look(link, &frame) {
                assert!(datagram.payload.len() <= usize::from(datagram.length).min(frame.len()));
            }
        }
    });
}

#[test]
fn headers_say_again_what_was_read() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let mut cursor = SliceCursor::new(bytes);
        if let Some(bytes) = cursor.take::<LINK_HEADER_LEN>()
            && let Some(header) = LinkHeader::decode(&bytes)
        {
            assert_eq!(header.encode(), bytes);
        }
        if let Some(bytes) = cursor.take::<CIRCUIT_HEADER_LEN>()
            && let Some(header) = CircuitHeader::decode(&bytes)
        {
            assert_eq!(header.encode(), bytes);
        }
        if let Some(bytes) = cursor.take::<LAYER_FIELDS_LEN>() {
            assert_eq!(LayerFields::decode(bytes).encode(), bytes);
        }
    });
}

#[test]
fn handshakes_come_apart_as_they_were_put_together() {
    let mac1 = Mac1Key::new(&[3; 32]);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let message = vec![2; HandshakeRole::Client.init_len()];
    let init = HsInit {
        role: HandshakeRole::Client,
        sender_index: 7,
        client_nonce: [1; _],
        message: &message,
        retry_token: [0; _],
    };
    let response = HsResp { sender_index: 7, receiver_index: 8, message: &[4; _] };
    let retry = Retry { client_nonce: [1; _], token: [2; _] };
    let wholes = vec![
        init.encode(&mac1, &mut rng).to_vec(),
        response.encode(&mut rng).to_vec(),
        retry.encode().to_vec(),
    ];
    assert_eq!(HsInit::decode(&wholes[0], &mac1), Ok(init));
    check!().with_iterations(INPUTS).with_type::<(u8, Damage)>().for_each(|(number, damage)| {
        let datagram = one_of(&wholes, *number, damage);
        let length = |kind: DatagramType| assert_eq!(datagram.len(), kind.datagram_len());
        if let Ok(init) = HsInit::decode(&datagram, &mac1) {
            length(DatagramType::HsInit);
            let again = init.encode(&mac1, &mut ChaCha20Rng::seed_from_u64(2));
            assert_eq!(HsInit::decode(&again, &mac1), Ok(init));
        }
        if let Ok(response) = HsResp::decode(&datagram) {
            length(DatagramType::HsResp);
            let again = response.encode(&mut ChaCha20Rng::seed_from_u64(2));
            assert_eq!(HsResp::decode(&again), Ok(response));
        }
        if let Ok(retry) = Retry::decode(&datagram) {
            length(DatagramType::Retry);
            assert_eq!(retry.encode()[..], datagram);
        }
    });
}

/// Packets as programs send them: a TCP SYN, an ICMP error that quotes a datagram, UDP over IPv6.
fn inner_packets() -> Vec<Vec<u8>> {
    let [quoted, v6] = packets(&[9; 40]);
    let v4 = |protocol: u8, rest: &[u8]| {
        let [high, low] = u16::try_from(20 + rest.len()).expect("short").to_be_bytes();
        let header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
        [&header[..], rest].concat()
    };
    let ports = [40_000, 443].map(u16::to_be_bytes).concat();
    let syn =
        [&ports[..], &[0; 8], &[0x70, 2, 0xff, 0xff, 0, 0, 0, 0], &[1, 1, 1, 2, 4, 0x05, 0xb4, 0]].concat();
    vec![v4(6, &syn), v4(1, &[&[3, 4, 0, 0, 0, 0, 5, 120][..], &quoted].concat()), v6]
}

/// Writes into a packet how long it is, so that a reader goes on to what stands behind that.
fn with_its_length(mut packet: Vec<u8>) -> Vec<u8> {
    let (place, less) = if packet.first().is_some_and(|byte| byte >> 4 == 6) { (4, 40) } else { (2, 0) };
    let length = u16::try_from(packet.len().saturating_sub(less)).unwrap_or(0);
    if let Some(field) = packet.get_mut(place..place + 2) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    packet
}

#[test]
fn packets_stay_packets_when_their_addresses_change() {
    let wholes = inner_packets();
    assert!(wholes.iter().all(|packet| Inner::parse(packet).is_ok()));
    check!().with_iterations(INPUTS).with_type::<(u8, Damage, bool)>().for_each(
        |(number, damage, source)| {
            let mut packet = with_its_length(one_of(&wholes, *number, damage));
            let Ok(inner) = Inner::parse(&packet) else { return };
            assert!(inner.transport.is_none_or(|at| at <= packet.len()));
            clamp_mss(&mut packet, &inner);
            let side = if *source { Side::Source } else { Side::Destination };
            let to = if inner.source.is_ipv4() { "192.0.2.77" } else { "2001:db8::77" };
            let to = to.parse().expect("an address");
            if rewrite(&mut packet, &inner, side, to).is_ok() {
                let changed = Inner::parse(&packet).expect("it was a packet, and no length has changed");
                let [was, is] = if *source {
                    [inner.destination, changed.destination]
                } else {
                    [inner.source, changed.source]
                };
                assert_eq!(was, is, "the other side stays");
                assert_eq!(if *source { changed.source } else { changed.destination }, to);
            }
        },
    );
}

#[test]
fn cells_in_any_order_bring_whole_blocks() {
    const WINDOW: usize = 8;
    check!().with_iterations(INPUTS / 10).with_type::<(Vec<(u8, u16, u8)>, Vec<u8>)>().for_each(
        |(cells, packet)| {
            let mut packer = Packer::new(8 * 1024);
            let mut reassembler = Reassembler::new(WINDOW);
            let sink = &mut |_: BlockKind, packet: &[u8]| assert!((1..=MAX_PACKET).contains(&packet.len()));
            for (nth, (seq, offset, fill)) in cells.iter().enumerate() {
                let mut data = [*fill; DATA_LEN];
                // Some cells are sound, and some have their beginning only from chance.
                let mut offset = *offset;
                if fill % 2 == 0 {
                    let _full = packer.push(BlockKind::Ipv4, packet, nth as u64);
                    offset = packer.fill(&mut data, nth as u64).block_offset;
                } else {
                    let count = packet.len().min(DATA_LEN);
                    data[..count].copy_from_slice(&packet[..count]);
                }
                reassembler.accept(u64::from(*seq), &data, offset, sink);
                assert!(reassembler.held() <= WINDOW);
            }
            for now in [0, u64::MAX / 2, u64::MAX] {
                reassembler.flush(now, sink);
            }
        },
    );
}

/// A capture with each of [`frames`], by the specifications of pcap and pcapng.
fn captures() -> Vec<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let block = |kind: u32, body: &[u8]| {
        let length = u32::try_from(body.len() + 12).expect("short");
        [&words(&[kind, length])[..], body, &words(&[length])].concat()
    };
    let mut pcap = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1]);
    let mut pcapng = block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    pcapng.extend(block(1, &words(&[1, 0, 0x0001_0009, 9, 0])));
    for (nth, frame) in (0..).zip(frames()) {
        let length = u32::try_from(frame.len()).expect("short");
        pcap.extend([words(&[nth, 0, length, length]), frame.clone()].concat());
        let mut packet = [words(&[0, 0, nth, length, length]), frame].concat();
        packet.resize(packet.len().next_multiple_of(4), 0);
        pcapng.extend(block(6, &packet));
    }
    vec![pcap, pcapng]
}

#[test]
fn captures_are_read_or_refused() {
    let wholes = captures();
    let limits = Limits { directions: 4, cells: 64, all_cells: 128, tallied: 1 };
    assert!(wholes.iter().all(|file| capture::read(&file[..], limits).is_ok()));
    check!().with_iterations(INPUTS / 10).with_type::<(u8, Damage)>().for_each(|(number, damage)| {
        if let Ok(capture) = capture::read(&one_of(&wholes, *number, damage)[..], limits) {
            let directions: Vec<_> = capture.links.iter().flat_map(|link| &link.directions).collect();
            assert!(directions.len() <= limits.directions);
            assert!(directions.iter().all(|direction| direction.trace.sights().len() <= limits.cells));
        }
    });
}

/// A network document, a relay's file and a client's.
fn texts() -> [String; 3] {
    let key = |nth: u8| format!("{nth:02x}").repeat(32);
    let mut network = "version = 1\nepoch = 1\nvalid_from = \"2026-01-01T00:00:00Z\"\n\
                       valid_until = \"2027-06-01T00:00:00Z\"\ncell_len = 1360\nsuite = 1\n\n\
                       [classes.standard]\nrate = 1500\nschedule = \"jittered\"\n\n\
                       [classes.trunk]\nrate = 2000\nschedule = \"constant\"\n"
        .to_owned();
    for (nth, name) in (1..).zip(["entry", "middle", "exit"]) {
        network += &format!(
            "\n[[relays]]\nid = \"{nth:032x}\"\nname = \"{name}\"\naddress = \"192.0.2.{nth}:7443\"\n\
             key = \"{}\"\nroles = [\"{name}\"]\n",
            key(nth)
        );
    }
    for between in ["\"entry\", \"middle\"", "\"middle\", \"exit\""] {
        network += &format!("\n[[trunks]]\nbetween = [{between}]\nclass = \"trunk\"\n");
    }
    let both = format!("network = \"network.toml\"\noperator = \"{}\"\n", key(9));
    let control = "\n[control]\nsocket = \"/run/evenwire.sock\"\n";
    let relay = format!(
        "name = \"exit\"\nkey = \"exit.key\"\n{both}\n[datapath]\ninterface = \"eth0\"\nmode = \"auto\"\n\
         ring = 4096\n\n[worker]\ncount = 1\npoll = \"adaptive\"\n{control}\n[exit]\ntun = \"ew-exit\"\n\
         outside = \"eth1\"\npool4 = \"100.96.0.0/16\"\npool6 = \"fd6e:7765::/64\"\n"
    );
    let client = format!(
        "{both}class = \"standard\"\ncover = \"circuit\"\npath = [\"entry\", \"middle\", \"exit\"]\n\n\
         [datapath]\nmode = \"udp\"\nlisten = \"0.0.0.0:0\"\n\n[worker]\npoll = \"adaptive\"\n{control}\n\
         [tun]\nname = \"ew0\"\nmtu = 1400\nroutes = [\"198.51.100.0/24\"]\n"
    );
    [network, relay, client]
}

/// What is wrong with `text` as a file of this kind, by its number in [`texts`].
fn refusal(number: usize, text: &str) -> Option<String> {
    let file = Path::new("evenwire.toml");
    let error = match number {
        0 => NetworkDocument::parse_unverified(file, text).err(),
        1 => RelayConfig::parse(file, text).err(),
        _ => ClientConfig::parse(file, text).err(),
    };
    error.map(|error| error.to_string())
}

#[test]
fn files_are_read_or_refused_by_name() {
    let texts = texts();
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(refusal(number, text), None);
    }
    check!().with_iterations(INPUTS / 4).with_type::<(u8, Damage, String)>().for_each(
        |(number, damage, line)| {
            let number = usize::from(*number) % texts.len();
            let text = damaged(texts[number].as_bytes(), damage);
            let text = String::from_utf8_lossy(&text);
            for text in [text.as_ref(), &format!("{line}\n{text}"), line] {
                if let Some(refusal) = refusal(number, text) {
                    assert!(refusal.contains("evenwire.toml"), "{refusal}");
                }
            }
        },
    );
}
