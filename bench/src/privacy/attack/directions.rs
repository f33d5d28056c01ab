//! What the directions of a link say beside each other, and which of them tells most.

use rand_chacha::ChaCha8Rng;
use relay_tests::Host;
use relay_user::observe::attacks::directions::{Part, most_telling};
use relay_user::observe::finding::Finding;

use crate::privacy::links::name_of;
use crate::report::table::short;

/// What a direction says.
pub(super) type Said<'a> = ((Host, Host), Vec<Part<'a>>);

/// What each direction says, where it was seen. All get the same randomness, so that they learn on the same stretches.
pub(super) fn parts<'a>(
    wires: &[(Host, Host)],
    rng: &mut ChaCha8Rng,
    mut of: impl FnMut((Host, Host), &mut ChaCha8Rng) -> Option<Vec<Part<'a>>>,
) -> Vec<Said<'a>> {
    let same = rng.clone();
    let parts = wires.iter().filter_map(|&wire| {
        *rng = same.clone();
        Some((wire, of(wire, rng)?))
    });
    parts.collect()
}

/// Statistic by statistic, the direction that is furthest from chance, with a note: which that is, what each says, and
/// which of those that are `wanted` was not seen.
pub(super) fn furthest(
    directions: &[Said<'_>],
    wanted: &[(Host, Host)],
    rng: &mut ChaCha8Rng,
) -> Vec<(Finding, String)> {
    let count = directions.iter().map(|(_, parts)| parts.len()).min().unwrap_or(0);
    (0..count)
        .filter_map(|statistic| {
            let parts: Vec<&Part<'_>> =
                directions.iter().filter_map(|(_, parts)| parts.get(statistic)).collect();
            let most = most_telling(&parts, rng)?;
            let whose =
                most.direction.and_then(|place| directions.get(place)).map(|(wire, _)| name_of(*wire));
            let whose = whose.unwrap_or_else(|| "the mean".to_owned());
            let each: Vec<String> = most.each.iter().map(|value| short(*value)).collect();
            let unseen = wanted.len() - directions.len();
            let unseen =
                if unseen == 0 { String::new() } else { format!("; {unseen} directions were not seen") };
            let width = if each.len() > 1 { format!(" ± {}", short(most.reach)) } else { String::new() };
            Some((most.finding, format!("{whose}, of {}{width}{unseen}", each.join(" "))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::links::CLIENT;
    use rand_core::SeedableRng as _;
    use relay_user::observe::attacks::activity;
    use relay_user::observe::stats::below;
    use relay_user::observe::trace::{Sample, Sight, Trace};

    /// Two directions, each of windows whose gaps are spread as `spreads` says of idle and of busy ones.
    fn two(spreads: [[u64; 2]; 2]) -> Vec<(Finding, String)> {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let traces = spreads.map(|spreads| {
            let at = |slot: u64| {
                let spread = spreads[usize::from(slot / 200 % 2 == 1)];
                slot * 1_000_000 + below(&mut rng, usize::try_from(spread).unwrap()) as u64
            };
            Trace::new((0..8000).map(at).map(|at| Sight { at, length: 1360 }).collect())
        });
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let same = rng.clone();
        let directions: Vec<Said<'_>> = CLIENT
            .into_iter()
            .zip(&traces)
            .map(|(wire, trace)| {
                let samples: Vec<Sample<'_>> = (0..400_u32)
                    .map(|window| Sample {
                        window: trace
                            .window(u64::from(window) * 20_000_000, u64::from(window + 1) * 20_000_000),
                        label: u16::from(window / 10 % 2 == 1),
                        block: window / 10,
                    })
                    .collect();
                (wire, activity::parts(&samples, &mut same.clone()))
            })
            .collect();
        furthest(&directions, &CLIENT, &mut rng)
    }

    #[test]
    fn the_direction_that_tells_most_is_what_counts() {
        let (found, note) = two([[1000, 1000], [1000, 100_000]]).swap_remove(0);
        assert!(found.value > 0.95 && found.samples == 600 && found.interval.holds(found.value), "{found:?}");
        assert!(
            note.starts_with("entry to client, of 0.4") || note.starts_with("entry to client, of 0.5"),
            "{note}"
        );
        let (nothing, _) = two([[1000, 1000], [1000, 1000]]).swap_remove(0);
        assert!((nothing.value - 0.5).abs() < 0.1, "{nothing:?}");
    }
}
