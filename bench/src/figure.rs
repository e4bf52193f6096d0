//! What was measured of one program, and how far it can be trusted.

use serde::Serialize;

/// The share of its core that a proxy must use for a figure of saturation to be its own.
pub(crate) const SATURATED: f64 = 0.95;

/// The figures of one program in one row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// The program.
    pub(crate) who: String,
    pub(crate) version: String,
    /// How it was started.
    pub(crate) command: String,
    /// One per round, in order of size.
    pub(crate) values: Vec<f64>,
    /// Median share of the core that the program used, where saturation is claimed.
    pub(crate) core: Option<f64>,
    /// Why the figure does not count.
    pub(crate) invalid: Option<String>,
}

/// The middle of sorted values, and what they span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Figure {
    pub(crate) fn new(who: &str, version: &str, command: &str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let invalid = values.is_empty().then(|| "nothing was measured".to_owned());
        let (who, version, command) = (who.to_owned(), version.to_owned(), command.to_owned());
        Self { who, version, command, values, core: None, invalid }
    }

    /// Claims saturation: the shares of the core in each round must bear it out.
    pub(crate) fn saturating(mut self, mut shares: Vec<f64>) -> Self {
        shares.sort_by(f64::total_cmp);
        let share = quantile(&shares, 0.5);
        self.core = Some(share);
        if share.is_nan() || share < SATURATED {
            let percent = share * 100.0;
            self.invalid =
                Some(format!("it used {percent:.0} % of its core, so something else was the limit"));
        }
        self
    }

    pub(crate) fn spread(&self) -> Spread {
        let at = |q| quantile(&self.values, q);
        Spread { least: at(0.0), median: at(0.5), most: at(1.0) }
    }
}

/// The value at quantile `q` of sorted values.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 101.0);
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_figure_of_a_proxy_that_was_not_the_limit_is_invalid() {
        let figure = || Figure::new("a", "1", "a", vec![3.0, 1.0, 2.0]);
        assert_eq!(figure().spread(), Spread { least: 1.0, median: 2.0, most: 3.0 });
        assert!(figure().saturating(vec![0.99, 0.90, 0.96]).invalid.is_none());
        let idle = figure().saturating(vec![0.99, 0.90, 0.94]);
        assert!(idle.invalid.unwrap().contains("94 %"));
        assert!(figure().saturating(vec![]).invalid.is_some());
        assert!(Figure::new("a", "1", "a", vec![]).invalid.is_some());
    }
}
