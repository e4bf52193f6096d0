//! Rounds: every program in turn, so that what else the machine does falls on all of them.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::figure::{Figure, SATURATED};
use crate::load::Load;
use crate::peer::Running;
use crate::process;

/// How long a program is warmed up before its first round.
const WARM_UP: Duration = Duration::from_secs(1);
/// Rounds are repeated when they were disturbed, up to so many for each that shall count.
const TRIES: usize = 4;

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

    /// Requests per second that each program can take; also how many rounds do not count because
    /// something else took the core of a program, or of the load.
    pub(crate) async fn saturate(
        self,
        programs: &[Running],
        load: impl Fn(&Running) -> Load,
    ) -> anyhow::Result<(Vec<Figure>, usize)> {
        for program in programs {
            load(program).closed(WARM_UP.min(self.time)).await?;
        }
        let mut rounds: Vec<Vec<Sample>> = Vec::new();
        while rounds.len() < self.count * TRIES
            && rounds.iter().filter(|all| counts(all)).count() < self.count
        {
            let mut round = Vec::new();
            for program in programs {
                round.push(Sample::take(program, load(program), self.time).await?);
            }
            rounds.push(round);
        }
        let tried = rounds.len();
        let rounds = chosen(rounds);
        let disturbed = tried - rounds.len();
        let figures = programs.iter().enumerate().map(|(index, program)| {
            let of = |what: fn(&Sample) -> f64| {
                rounds.iter().filter_map(move |round| Some(what(round.get(index)?)))
            };
            program.figure(of(|s| s.per_second).collect()).saturating(of(|s| s.core).collect())
        });
        Ok((figures.collect(), disturbed))
    }
}

/// One program in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    per_second: f64,
    /// The share of its core that the program used.
    core: f64,
}

impl Sample {
    async fn take(program: &Running, load: Load, time: Duration) -> anyhow::Result<Self> {
        let (begin, before) = (Instant::now(), program.cpu()?);
        let per_second = load.closed(time).await?.per_second();
        let used = program.cpu()?.saturating_sub(before);
        Ok(Self { per_second, core: used.as_secs_f64() / begin.elapsed().as_secs_f64() })
    }
}

/// Whether every program used up its core: then nothing else did.
fn counts(round: &[Sample]) -> bool {
    round.iter().all(|sample| sample.core >= SATURATED)
}

/// The rounds that count; all of them when none does, for the figures to say why they are invalid.
fn chosen(rounds: Vec<Vec<Sample>>) -> Vec<Vec<Sample>> {
    let counting: Vec<_> = rounds.iter().filter(|round| counts(round)).cloned().collect();
    if counting.is_empty() { rounds } else { counting }
}

/// What all processes of a program used.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| process::cpu(*pid)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_counts_for_all_programs_or_for_none() {
        let sample = |core| Sample { per_second: 1.0, core };
        let (calm, noisy) = (vec![sample(0.97), sample(0.99)], vec![sample(0.60), sample(0.99)]);
        assert_eq!(chosen(vec![noisy.clone(), calm.clone(), noisy.clone()]), [calm]);
        assert_eq!(chosen(vec![noisy.clone()]), [noisy], "shown as invalid, not hidden");
    }
}
