//! Memory of a program that has nothing to do.

use std::time::Duration;

use crate::Args;
use crate::app::App;
use crate::peer::{self, ONE_HOP, Running};
use crate::report::{Better, Report, short};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks at most.
const LOOKS: usize = 30;
/// Looks in a row without a change of more than 1 % count as settled.
const CALM: usize = 3;

/// One node, or one peer's process, that has answered one request.
pub(super) async fn idle(args: &Args) -> anyhow::Result<Report> {
    let app = App::start().await?;
    let (programs, skipped) = peer::start(ONE_HOP, args, app.address).await?;
    let mut figures = Vec::new();
    let mut resident = Vec::new();
    for program in &programs {
        program.ready("/").await?;
        let pss = settled(program).await?;
        resident.push(format!("{} {} MiB", program.who, short(mib(program.memory()?.rss))));
        figures.push(program.figure(vec![mib(pss)]));
    }
    let settings = format!("PSS once it is settled, after one request; resident: {}", resident.join(", "));
    Ok(Report::new("idle memory", "MiB", Better::Lower, settings).with(figures, skipped).compared())
}

/// The PSS once it no longer changes, in bytes.
pub(super) async fn settled(program: &Running) -> anyhow::Result<u64> {
    let (mut last, mut calm) = (program.memory()?.pss, 0);
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        let now = program.memory()?.pss;
        calm = if now.abs_diff(last) <= last / 100 { calm + 1 } else { 0 };
        last = now;
        if calm == CALM {
            return Ok(now);
        }
    }
    anyhow::bail!("the memory of {} does not settle", program.who)
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
