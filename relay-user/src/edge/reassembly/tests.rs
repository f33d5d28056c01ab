use proptest::prelude::*;

use super::*;
use crate::edge::packing::Packer;

struct Cell {
    hop_seq: u64,
    block_offset: u16,
    data: [u8; DATA_LEN],
}

type Packets = Vec<(BlockKind, Vec<u8>)>;

/// Packets that differ in every part: the content is a stream seeded by the packet's place.
fn packets(sizes: &[usize]) -> Packets {
    let kinds = [BlockKind::Ipv4, BlockKind::Ipv6, BlockKind::Control];
    let bytes = |at: usize, size: usize| {
        let mut state = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (0..size).map(move |_| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            state.to_be_bytes()[0]
        })
    };
    sizes.iter().enumerate().map(|(at, &size)| (kinds[at % 3], bytes(at, size).collect())).collect()
}

/// The cells that carry `sent`, with a cover cell now and then, numbered from `first`.
fn cells(sent: &Packets, first: u64, batch: usize) -> Vec<Cell> {
    let mut packer = Packer::new(1 << 20);
    let mut out = Vec::new();
    let mut emit = |packer: &mut Packer| {
        let mut data = [0; DATA_LEN];
        let fill = packer.fill(&mut data, 0);
        let hop_seq = first.wrapping_add(out.len() as u64);
        out.push(Cell { hop_seq, block_offset: fill.block_offset, data });
    };
    for group in sent.chunks(batch) {
        for (kind, packet) in group {
            packer.push(*kind, packet, 0).unwrap();
        }
        emit(&mut packer);
    }
    while !packer.is_empty() {
        emit(&mut packer);
    }
    emit(&mut packer);
    out
}

fn is_subsequence(part: &Packets, whole: &Packets) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|packet| whole.any(|other| other == packet))
}

fn receive(reassembler: &mut Reassembler, cell: &Cell, got: &mut Packets) {
    reassembler.accept(cell.hop_seq, &cell.data, cell.block_offset, &mut |kind, packet| {
        got.push((kind, packet.to_vec()));
    });
}

proptest! {
    #[test]
    fn all_arrives_when_nothing_is_lost(
        sizes in prop::collection::vec(20..=1400usize, 1..60),
        batch in 1..8usize,
        first in any::<u64>(),
        moves in prop::collection::vec(0..16u64, 200),
    ) {
        let sent = packets(&sizes);
        let mut cells = cells(&sent, first, batch);
        let mut order: Vec<_> = (0..cells.len()).collect();
        // No cell overtakes another that was sent 16 or more before it.
        order.sort_by_key(|&at| at as u64 + moves[at % moves.len()]);
        let mut reassembler = Reassembler::new(64);
        reassembler.expect(first);
        let mut got = Vec::new();
        for at in order {
            receive(&mut reassembler, &cells[at], &mut got);
            // Every cell comes twice; the copy changed on the way would show.
            cells[at].data.fill(4);
            receive(&mut reassembler, &cells[at], &mut got);
        }
        prop_assert_eq!(got, sent);
        prop_assert_eq!(reassembler.dropped(ReassemblyDrop::LateCell), cells.len() as u64);
        prop_assert_eq!(reassembler.held(), 0);
    }

    #[test]
    fn loss_takes_only_what_it_touches(
        sizes in prop::collection::vec(20..=1400usize, 1..60),
        batch in 1..8usize,
        first in any::<u64>(),
        window in 1..80usize,
        fates in prop::collection::vec((0..10u8, 0..100u64), 200),
    ) {
        let sent = packets(&sizes);
        let cells = cells(&sent, first, batch);
        let mut order: Vec<(u64, usize)> = Vec::new();
        for at in 0..cells.len() {
            let (fate, delay) = fates[at % fates.len()];
            match fate {
                0..=1 => {}
                2 => order.extend([(at as u64, at), (at as u64 + delay, at)]),
                3 => order.push((at as u64 + delay, at)),
                _ => order.push((at as u64, at)),
            }
        }
        order.sort_by_key(|&(at, _)| at);
        let mut reassembler = Reassembler::new(window);
        let mut got = Vec::new();
        for (turn, (_, at)) in order.into_iter().enumerate() {
            receive(&mut reassembler, &cells[at], &mut got);
            prop_assert!(reassembler.held() < window.max(2));
            if turn % 7 == 0 {
                reassembler.flush(turn as u64 * 5_000_000, &mut |kind, packet| got.push((kind, packet.to_vec())));
            }
        }
        for turn in 0..200 {
            reassembler.flush(1 << 40 | turn << 30, &mut |kind, packet| got.push((kind, packet.to_vec())));
        }
        prop_assert_eq!(reassembler.held(), 0);
        prop_assert!(is_subsequence(&got, &sent));
    }

    #[test]
    fn any_bytes_are_survived(
        cells in prop::collection::vec((0..40u64, any::<u16>(), prop::collection::vec(any::<u8>(), 1..40)), 0..200),
        narrow in any::<bool>(),
    ) {
        let mut reassembler = Reassembler::new(8);
        for (turn, (jump, block_offset, pattern)) in cells.iter().enumerate() {
            let mut data = [0; DATA_LEN];
            for (at, byte) in data.iter_mut().enumerate() {
                // Few values make headers that are valid in part far more often.
                *byte = pattern[at % pattern.len()] % if narrow { 8 } else { 255 };
            }
            let block_offset = if narrow { block_offset % 1300 } else { *block_offset };
            let hop_seq = (turn as u64).wrapping_sub(20).wrapping_add(*jump);
            let mut lengths_hold = true;
            reassembler.accept(hop_seq, &data, block_offset, &mut |_, packet| {
                lengths_hold &= (1..=MAX_PACKET).contains(&packet.len());
            });
            prop_assert!(lengths_hold);
        }
    }
}

#[test]
fn a_lost_cell_costs_the_packet_cut_in_it_and_no_other() {
    let sent = packets(&[1000, 1400, 1000]);
    let cells = cells(&sent, 7, 3);
    let mut reassembler = Reassembler::new(2);
    let mut got = Vec::new();
    for cell in cells.iter().filter(|cell| cell.hop_seq != 8) {
        receive(&mut reassembler, cell, &mut got);
    }
    for now in [0, REORDER_TIMEOUT - 1] {
        reassembler.flush(now, &mut |_, _| panic!("too early"));
    }
    reassembler.flush(REORDER_TIMEOUT, &mut |kind, packet| got.push((kind, packet.to_vec())));
    assert_eq!(got, [sent[0].clone()]);
    assert_eq!(reassembler.dropped(ReassemblyDrop::LostCell), 1);
    assert_eq!(reassembler.dropped(ReassemblyDrop::CutPacket), 1);
}

#[test]
fn malformed_blocks_are_counted_by_reason() {
    let cases: [(&[u8], u16, ReassemblyDrop); 6] = [
        (&[4, 0, 0], 0, ReassemblyDrop::BlockLength),
        (&[4, 0x05, 0xDD], 0, ReassemblyDrop::BlockLength),
        (&[5, 0, 20], 0, ReassemblyDrop::BlockKind),
        (&[], 1249, ReassemblyDrop::BlockOffset),
        (&[0, 0], 1249, ReassemblyDrop::BlockOffset),
        (&[4, 5, 0xDC], 0, ReassemblyDrop::BlockOffset),
    ];
    for (head, block_offset, reason) in cases {
        let mut data = [0; DATA_LEN];
        data[..head.len()].copy_from_slice(head);
        let mut reassembler = Reassembler::new(4);
        for hop_seq in 0..2 {
            reassembler.accept(hop_seq, &data, block_offset, &mut |_, _| panic!("delivered {head:?}"));
        }
        assert!(reassembler.dropped(reason) > 0, "{}", reason.name());
    }
    let mut data = [0; DATA_LEN];
    data[DATA_LEN - 1] = 4;
    let mut reassembler = Reassembler::new(4);
    reassembler.accept(0, &data, 1247, &mut |_, _| panic!("delivered"));
    assert_eq!(reassembler.dropped(ReassemblyDrop::BlockHeader), 1);
}

#[test]
fn a_far_jump_is_one_gap() {
    let mut reassembler = Reassembler::new(64);
    for hop_seq in [0, 5, 1 << 60] {
        reassembler.accept(hop_seq, &[0; DATA_LEN], 0, &mut |_, _| {});
    }
    assert_eq!(reassembler.dropped(ReassemblyDrop::LostCell), (1 << 60) - 63 - 2);
}
