//! Rounds: every program in turn, so that what else the machine does falls on all of them.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::figure::Figure;
use crate::load::Load;
use crate::peer::Running;
use crate::process;

/// How long a program is warmed up before its first round.
const WARM_UP: Duration = Duration::from_secs(1);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: usize,
    pub(crate) time: Duration,
}

impl Rounds {
    /// One figure per program: the values that `measure` gives in each round.
    pub(crate) async fn run(
        self,
        programs: &[Running],
        mut measure: impl AsyncFnMut(&Running, Duration) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<Figure>> {
        for program in programs {
            measure(program, WARM_UP.min(self.time)).await?;
        }
        let mut values = vec![Vec::new(); programs.len()];
        for _ in 0..self.count {
            for (program, values) in programs.iter().zip(&mut values) {
                values.push(measure(program, self.time).await?);
            }
        }
        let figures = programs.iter().zip(values);
        Ok(figures.map(|(program, values)| program.figure(values)).collect())
    }

    /// Records where the first program's time goes while it is saturated, for flame graphs.
    pub(crate) async fn profile(self, program: &Running, load: Load, into: &Path) -> anyhow::Result<()> {
        let file = into.join(format!("{}.perf", program.who.replace([',', ' '], "")));
        let mut recording = process::record(&program.pids, &file)?;
        let answered = load.closed(self.time).await;
        recording.interrupt()?;
        answered.map(drop)
    }

    /// Requests per second that each program can take.
    pub(crate) async fn saturate(
        self,
        programs: &[Running],
        load: impl Fn(&Running) -> Load,
    ) -> anyhow::Result<Vec<Figure>> {
        let mut shares = vec![Vec::new(); programs.len()];
        let figures = self.run(programs, async |program, time| {
            let before = (Instant::now(), program.cpu()?);
            let answers = load(program).closed(time).await?;
            let busy =
                program.cpu()?.saturating_sub(before.1).as_secs_f64() / before.0.elapsed().as_secs_f64();
            let index = programs.iter().position(|other| other.who == program.who).unwrap_or_default();
            shares[index].push(busy);
            Ok(answers.per_second())
        });
        let figures = figures.await?;
        Ok(figures
            .into_iter()
            .zip(shares)
            .map(|(figure, shares)| {
                // The first one is of the warm-up.
                figure.saturating(shares.into_iter().skip(1).collect())
            })
            .collect())
    }
}

/// What all processes of a program used.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| process::cpu(*pid)).sum()
}
