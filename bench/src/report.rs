//! A row's result: figures, ratios, and what makes them comparable.

use std::fmt;

use serde::Serialize;

use crate::figure::Figure;

/// Which figures are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What a row found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The settings that all programs share.
    pub(crate) settings: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) ratios: Vec<Ratio>,
    /// Peers that are missing, and why.
    pub(crate) skipped: Vec<(String, String)>,
}

/// One program's median as a multiple of another one's.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ratio {
    pub(crate) of: String,
    pub(crate) to: String,
    /// `None` when one of the figures does not count.
    pub(crate) value: Option<f64>,
}

impl Report {
    pub(crate) fn new(title: &'static str, unit: &'static str, better: Better, settings: String) -> Self {
        Self { title, unit, better, settings, figures: vec![], ratios: vec![], skipped: vec![] }
    }

    pub(crate) fn with(mut self, figures: Vec<Figure>, skipped: Vec<(String, String)>) -> Self {
        self.figures = figures;
        self.skipped = skipped;
        self
    }

    /// Compares the first program with each of the others.
    pub(crate) fn compared(mut self) -> Self {
        let valid = |figure: &Figure| figure.invalid.is_none().then(|| figure.spread().median);
        if let Some((first, others)) = self.figures.split_first() {
            let ratios = others.iter().map(|other| Ratio {
                of: first.who.clone(),
                to: other.who.clone(),
                value: valid(first).zip(valid(other)).map(|(a, b)| a / b),
            });
            self.ratios = ratios.collect();
        }
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} ({}; {})", self.title, self.unit, self.settings)?;
        for figure in &self.figures {
            let spread = figure.spread();
            let (least, median, most) = (short(spread.least), short(spread.median), short(spread.most));
            write!(f, "  {:<22} {median:>9}   {least} to {most}", figure.who)?;
            if let Some(core) = figure.core {
                let each = core / spread.median * 1e6;
                write!(f, ", {:.0} % of its core, {each:.1} µs of it each", core * 100.0)?;
            }
            match &figure.invalid {
                Some(why) => writeln!(f, "   INVALID: {why}")?,
                None => writeln!(f)?,
            }
        }
        for Ratio { of, to, value } in &self.ratios {
            match value {
                Some(value) => writeln!(f, "  {of} is {value:.2} of {to}")?,
                None => writeln!(f, "  {of} beside {to}: INVALID")?,
            }
        }
        for (who, why) in &self.skipped {
            writeln!(f, "  {who}: SKIPPED: {why}")?;
        }
        for figure in &self.figures {
            writeln!(f, "    {}: {}: {}", figure.who, figure.version, figure.command)?;
        }
        Ok(())
    }
}

/// Four digits are what a figure is worth.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(who: &str, value: f64) -> Figure {
        Figure::new(who, "1", who, vec![value])
    }

    #[test]
    fn ratios_are_of_the_first_to_each_other_one_and_only_of_what_counts() {
        let figures =
            vec![figure("skein", 80.0), figure("nginx", 100.0), figure("slow", 10.0).saturating(vec![0.5])];
        let report = Report::new("one hop", "requests/s", Better::Higher, "equal".into());
        let report = report.with(figures, vec![("pingora".into(), "not built".into())]).compared();
        let values: Vec<_> = report.ratios.iter().map(|ratio| (ratio.to.as_str(), ratio.value)).collect();
        assert_eq!(values, [("nginx", Some(0.8)), ("slow", None)]);
        let text = report.to_string();
        assert!(text.contains("skein is 0.80 of nginx"), "{text}");
        assert!(text.contains("skein beside slow: INVALID"), "{text}");
        assert!(text.contains("pingora: SKIPPED: not built"), "{text}");
        assert!(text.contains("50 % of its core, 50000.0 µs of it each"), "{text}");
    }
}
