//! Percentiles, and a figure of the real thing beside the model's.

use std::fmt;

/// Figures of one kind, in whatever unit.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `share` of the samples do not exceed (nearest rank); NaN when there is none.
    pub fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize - 1;
        sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The mean; NaN when there is none.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

/// One measurement of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Under which conditions.
    pub case: String,
    /// What was measured, with its unit.
    pub what: &'static str,
    /// On the real thing.
    pub real: f64,
    /// On the model.
    pub model: f64,
}

impl Row {
    /// The model's figure ÷ the real one; 1 when both are 0.
    pub fn ratio(&self) -> f64 {
        if self.real == self.model { 1.0 } else { self.model / self.real }
    }
}

/// The columns of [`Row`]'s text.
pub const HEADING: &str =
    "case                     what                              real      model   ratio";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, what, real, model } = self;
        write!(f, "{case:<24} {what:<28} {real:>9.1}  {model:>9.1}   {:>5.2}", self.ratio())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_and_the_mean_is_between_them() {
        let mut samples = Samples::default();
        assert!(samples.percentile(0.5).is_nan() && samples.is_empty());
        for sample in [4.0, 1.0, 3.0, 2.0] {
            samples.add(sample);
        }
        assert_eq!((samples.percentile(0.5), samples.percentile(0.99)), (2.0, 4.0));
        assert_eq!((samples.mean(), samples.len()), (2.5, 4));
    }
}
