use super::*;

fn plan(links: u32, cells: u64) -> Plan {
    Plan { links, cells, ..Plan::quick(Law::Jittered) }
}

#[test]
fn a_million_cells_take_less_than_half_a_minute() {
    let plan = Plan::quick(Law::Constant);
    assert!(plan.check().is_ok() && plan.cells > 1_000_000);
    assert!(plan.span() + HEAD_START + WARM_UP < Nanos(20 * Nanos::SECOND.0));
    assert!(Plan { links: 0, ..plan }.check().is_err());
    assert!(Plan { share: 1.0, ..plan }.check().is_err());
}

#[test]
fn cells_are_found_again_with_their_slots_and_what_they_carry() {
    let plan = plan(2, 100);
    let start = Nanos(Nanos::SECOND.0);
    let until = start + Nanos(10 * Nanos::SECOND.0);
    let mut notes = Vec::new();
    let mut arrivals = Vec::new();
    for pair in 0..2 {
        for counter in 0..1000_u32 {
            let slot = start + Nanos(u64::from(counter) * Nanos::MILLISECOND.0);
            // Every eleventh cell is lost on the wire.
            let at = slot + Nanos(100 + u64::from(pair));
            notes.push(Note { at, slot, pair, counter, place: 0 });
            if counter % 11 != 0 {
                arrivals.push(Arrival { pair, counter, at: at + Nanos(50), payload: counter % 3 == 0 });
            }
        }
    }
    notes.sort_by_key(|note| note.at);
    let places: Vec<u32> = notes.iter().map(|note| u32::from(note.pair == 1)).collect();
    notes.iter_mut().zip(places).for_each(|(note, place)| note.place = place);
    let recorded = join(&plan, (start, until), &notes, &arrivals);
    // Of the 800 slots that come after the warm-up.
    assert_eq!((recorded.handed.len(), recorded.unmatched), (2 * 728, 2 * 72));
    for (handed, wire) in recorded.handed.iter().zip(&recorded.wire) {
        let late = 100.0 + f64::from(handed.link);
        assert!(
            (handed.lateness - late).abs() < 0.5 && (wire.lateness - late - 50.0).abs() < 0.5,
            "{wire:?}"
        );
        assert_eq!((handed.payload, handed.link), (wire.payload, wire.link));
        assert!(handed.gap.is_nan() || (handed.gap - 1e6).abs() < 0.5);
        let service = if handed.link == 1 { Some(1.0) } else { None };
        assert!(service.is_none_or(|it| handed.service.is_nan() || (handed.service - it).abs() < 0.5));
    }
    let share = recorded.handed.iter().filter(|cell| cell.payload).count() as f64;
    assert!((share / recorded.handed.len() as f64 - 1.0 / 3.0).abs() < 0.05);
}
