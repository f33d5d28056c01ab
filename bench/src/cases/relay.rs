mod memory;
mod metered;
mod subject;
mod trial;

use std::time::Duration;

use crate::figure::Target;
use crate::rig::{Cores, Rig, Wire};
use crate::session::Session;
use subject::{PortKind, Subject};
use trial::Load;

/// Measures.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    session.progress("two workers in memory");
    let scaling = memory::scaling([0, 1], 400)?;
    let (one, two) = (median(scaling.one), median(scaling.two));
    session.measured("one worker, engine in memory", one, "1/s", None);
    session.measured(
        "two workers / one worker, engine in memory (no shared state)",
        two / one,
        "ratio",
        Some(Target::AtLeast(1.9)),
    );
    let rig = Rig::build(1)?;
    for rate in [50_000, 100_000, 150_000, 200_000, 250_000, 300_000] {
        session.progress(&format!("{rate}"));
        let raw = {
            let mut wire = Wire::open(&rig)?;
            wire.l2fwd(Duration::from_millis(100))?
        };
        for kind in [PortKind::Xdp, PortKind::Udp] {
            let mut load = Load::open(&rig, 1)?;
            let subject = Subject::start(&rig, kind, 1)?;
            let a = subject.sample()?;
            std::thread::sleep(Duration::from_millis(30));
            let b = subject.sample()?;
            let idle = (b.cpu - a.cpu).as_secs_f64() * 1e9 / (b.turns - a.turns) as f64;
            load.connect(&subject, rate)?;
            for _ in 0..3 {
                let trial = load.trial(&subject, rate, Duration::from_millis(100), idle);
                match trial {
                    Ok(trial) => {
                        eprintln!("{kind:?} {rate} l2fwd {:.0} idle {idle:.0} ns {trial:?}", raw.nanos())
                    }
                    Err(error) => eprintln!("{kind:?} {rate} {error:#}"),
                }
            }
        }
    }
    let _ = Cores::available();
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
