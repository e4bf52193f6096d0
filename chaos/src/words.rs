//! Faults in words, both ways: `partition iad lhr --one-way`, `latency iad lhr 200ms --jitter 20ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::fault::{Fault, LinkFault};
use crate::place::Place;

/// All that can be said; for help and errors.
pub const FORMS: [&str; 10] = [
    "kill NODE",
    "pause NODE",
    "restart NODE",
    "drain NODE",
    "partition PLACE [PLACE] [--one-way]",
    "latency PLACE PLACE 200ms [--jitter 20ms] [--one-way]",
    "loss PLACE PLACE 10% [--one-way]",
    "duplicate PLACE PLACE 10% [--one-way]",
    "reorder PLACE PLACE 10% [--one-way]",
    "rate PLACE PLACE 1mbit [--one-way]",
];

/// Why words are no fault; the caller of `skein chaos inject` wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// The first word is no fault.
    #[error("there is no fault {0:?}; say one of:\n{forms}", forms = forms())]
    Kind(String),
    /// The words after it do not fit.
    #[error("{problem}; say: {form}")]
    Form {
        /// What is wrong.
        problem: String,
        /// How it is said.
        form: &'static str,
    },
}

fn forms() -> String {
    FORMS.map(|form| format!("  {form}")).join("\n")
}

impl FromStr for Fault {
    type Err = WordsError;

    fn from_str(text: &str) -> Result<Self, WordsError> {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let form = FORMS.iter().find(|form| form.split(' ').next() == Some(kind));
        let Some(form) = form else {
            return Err(WordsError::Kind(kind.chars().take(80).collect()));
        };
        let wrong = |problem: String| WordsError::Form { problem, form };
        let mut said = Said::default();
        while let Some(word) = words.next() {
            match word {
                "--one-way" => said.one_way = true,
                "--jitter" => said.jitter = Some(words.next().unwrap_or_default()),
                option if option.starts_with("--") => {
                    return Err(wrong(format!("{kind} has no option {option}")));
                }
                place => said.places.push(place),
            }
        }
        said.fault(kind).map_err(wrong)
    }
}

#[derive(Default)]
struct Said<'a> {
    places: Vec<&'a str>,
    one_way: bool,
    jitter: Option<&'a str>,
}

impl Said<'_> {
    fn fault(self, kind: &str) -> Result<Fault, String> {
        if self.jitter.is_some() && kind != "latency" {
            return Err(format!("{kind} has no option --jitter"));
        }
        let node_fault = matches!(kind, "kill" | "pause" | "restart" | "drain");
        if self.one_way && node_fault {
            return Err(format!("{kind} has no option --one-way"));
        }
        match (kind, self.places.as_slice()) {
            (_, [node]) if node_fault => {
                let node = (*node).to_owned();
                Ok(match kind {
                    "kill" => Fault::Kill { node },
                    "pause" => Fault::Pause { node },
                    "restart" => Fault::Restart { node },
                    _ => Fault::Drain { node },
                })
            }
            ("partition", [from]) => Ok(self.link(from, "everyone", LinkFault::Partition)),
            ("partition", [from, to]) => Ok(self.link(from, to, LinkFault::Partition)),
            ("latency", [from, to, delay]) => {
                let delay_us = micros(delay)?;
                let jitter_us = self.jitter.map(micros).transpose()?.unwrap_or_default();
                self.checked(from, to, LinkFault::Latency { delay_us, jitter_us })
            }
            ("loss", [from, to, share]) => self.checked(from, to, LinkFault::Loss { share: percent(share)? }),
            ("duplicate", [from, to, share]) => {
                self.checked(from, to, LinkFault::Duplicate { share: percent(share)? })
            }
            ("reorder", [from, to, share]) => {
                self.checked(from, to, LinkFault::Reorder { share: percent(share)? })
            }
            ("rate", [from, to, amount]) => self.checked(from, to, LinkFault::Rate { bytes: rate(amount)? }),
            (_, places) => Err(format!("{} words after {kind:?} do not fit", places.len())),
        }
    }

    fn checked(&self, from: &str, to: &str, what: LinkFault) -> Result<Fault, String> {
        what.invalid().map_or_else(|| Ok(self.link(from, to, what)), |problem| Err(problem.to_owned()))
    }

    fn link(&self, from: &str, to: &str, what: LinkFault) -> Fault {
        let place = |text: &str| Place::from(text.to_owned());
        Fault::Link { from: place(from), to: place(to), one_way: self.one_way, what }
    }
}

/// `200ms`, `1.5s`, `10us`, `2m` as a duration, to the microsecond.
///
/// # Errors
/// The problem in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    micros(text).map(Duration::from_micros)
}

fn micros(text: &str) -> Result<u64, String> {
    let units = [("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7), ("h", 3.6e9)];
    // `ms` and `us` end in `s` too: they stand before it.
    let found = units.iter().find_map(|(unit, scale)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Some(number * scale)
    });
    let micros = found.filter(|micros| micros.is_finite() && *micros >= 0.0 && *micros < 1e15);
    micros
        .map(|micros| micros.round() as u64)
        .ok_or_else(|| format!("{text:?} is no time: write 200ms, 1.5s or 2m"))
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let number = number.filter(|number| number.is_finite());
    number.map(|number| number / 100.0).ok_or_else(|| format!("{text:?} is no share of packets: write 10%"))
}

fn rate(text: &str) -> Result<u64, String> {
    let units = [
        ("kbit", 125.0),
        ("mbit", 125e3),
        ("gbit", 125e6),
        ("kB/s", 1e3),
        ("MB/s", 1e6),
        ("GB/s", 1e9),
        ("B/s", 1.0),
    ];
    let found = units.iter().find_map(|(unit, scale)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Some(number * scale)
    });
    let bytes = found.filter(|bytes| bytes.is_finite() && *bytes >= 0.0 && *bytes < 1e15);
    bytes
        .map(|bytes| bytes.round() as u64)
        .ok_or_else(|| format!("{text:?} is no rate: write 1mbit or 64kB/s"))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { node } => write!(f, "kill {node}"),
            Self::Pause { node } => write!(f, "pause {node}"),
            Self::Restart { node } => write!(f, "restart {node}"),
            Self::Drain { node } => write!(f, "drain {node}"),
            Self::Link { from, to, one_way, what } => {
                match *what {
                    LinkFault::Partition => write!(f, "partition {from} {to}")?,
                    LinkFault::Latency { delay_us, jitter_us } => {
                        write!(f, "latency {from} {to} {}", Micros(delay_us))?;
                        if jitter_us > 0 {
                            write!(f, " --jitter {}", Micros(jitter_us))?;
                        }
                    }
                    LinkFault::Loss { share } => write!(f, "loss {from} {to} {}", Percent(share))?,
                    LinkFault::Duplicate { share } => write!(f, "duplicate {from} {to} {}", Percent(share))?,
                    LinkFault::Reorder { share } => write!(f, "reorder {from} {to} {}", Percent(share))?,
                    LinkFault::Rate { bytes } => write!(f, "rate {from} {to} {}", Rate(bytes))?,
                }
                if *one_way { f.write_str(" --one-way") } else { Ok(()) }
            }
        }
    }
}

struct Micros(u64);
impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us if us % 1_000_000 == 0 => write!(f, "{}s", us / 1_000_000),
            us if us % 1_000 == 0 => write!(f, "{}ms", us / 1_000),
            us => write!(f, "{us}us"),
        }
    }
}

struct Percent(f64);
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.6}", self.0 * 100.0);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

struct Rate(u64);
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % 125_000 == 0 => write!(f, "{}mbit", bytes / 125_000),
            bytes if bytes % 125 == 0 => write!(f, "{}kbit", bytes / 125),
            bytes => write!(f, "{bytes}B/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Fault {
        text.parse().unwrap()
    }

    /// SPEC CH-1: the words of the command line.
    #[test]
    fn faults_read_like_english_and_print_as_they_were_said() {
        for text in [
            "kill iad-1",
            "pause nrt-1",
            "restart lhr-1",
            "drain lhr-1",
            "partition iad lhr",
            "partition iad-1 lhr --one-way",
            "partition nrt everyone",
            "latency iad lhr 200ms --jitter 20ms",
            "latency iad everyone 1500us --one-way",
            "loss iad lhr 10%",
            "duplicate iad lhr 0.5%",
            "reorder iad lhr 25%",
            "rate iad lhr 1mbit",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("partition nrt"), parsed("partition nrt everyone"));
        assert_eq!(parsed("latency iad lhr 1.5s"), parsed("latency iad lhr 1500ms"));
        assert_eq!(parsed("rate iad lhr 1mbit"), parsed("rate iad lhr 125kB/s"));
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_the_form() {
        for (text, wanted) in [
            ("", "partition PLACE"),
            ("explode iad-1", "kill NODE"),
            ("kill", "kill NODE"),
            ("kill iad-1 lhr-1", "kill NODE"),
            ("kill iad-1 --one-way", "no option --one-way"),
            ("loss iad lhr", "10%"),
            ("loss iad lhr 10", "write 10%"),
            ("loss iad lhr 110%", "0% to 100%"),
            ("loss iad lhr NaN%", "write 10%"),
            ("loss iad lhr 10% --jitter 1ms", "no option --jitter"),
            ("latency iad lhr fast", "write 200ms"),
            ("latency iad lhr -1ms", "write 200ms"),
            ("latency iad lhr 2h", "an hour"),
            ("latency iad lhr 1ms --jitter", "write 200ms"),
            ("rate iad lhr 0mbit", "at least one byte"),
            ("partition iad lhr --two-way", "--two-way"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    fn any_link() -> impl Strategy<Value = LinkFault> {
        // Shares to a ten-thousandth of a percent: what the words can carry.
        let share = (0u32..=1_000_000).prop_map(|millionths| f64::from(millionths) / 10_000.0 / 100.0);
        prop_oneof![
            Just(LinkFault::Partition),
            (0u64..=3_600_000_000, 0u64..=3_600_000_000)
                .prop_map(|(delay_us, jitter_us)| LinkFault::Latency { delay_us, jitter_us }),
            share.clone().prop_map(|share| LinkFault::Loss { share }),
            share.clone().prop_map(|share| LinkFault::Duplicate { share }),
            share.prop_map(|share| LinkFault::Reorder { share }),
            (1u64..1_000_000_000).prop_map(|bytes| LinkFault::Rate { bytes }),
        ]
    }

    fn any_fault() -> impl Strategy<Value = Fault> {
        let node = "[a-z]{3}-[1-9]";
        prop_oneof![
            node.prop_map(|node| Fault::Kill { node }),
            node.prop_map(|node| Fault::Pause { node }),
            node.prop_map(|node| Fault::Restart { node }),
            node.prop_map(|node| Fault::Drain { node }),
            (node, "[a-z]{3}|everyone", any::<bool>(), any_link()).prop_map(|(from, to, one_way, what)| {
                Fault::Link { from: from.into(), to: to.into(), one_way, what }
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_fault_is_the_same_after_words_and_after_json(fault in any_fault()) {
            prop_assert_eq!(&fault.to_string().parse::<Fault>().unwrap(), &fault);
            let json = serde_json::to_string(&fault).unwrap();
            // JSON may turn the last bit of a number; words never show it.
            prop_assert_eq!(serde_json::from_str::<Fault>(&json).unwrap().to_string(), fault.to_string(), "{}", json);
        }

        #[test]
        fn no_words_make_the_parser_panic(text in ".{0,80}") {
            if let Ok(fault) = text.parse::<Fault>() {
                let again = fault.to_string();
                prop_assert!(again.parse::<Fault>().is_ok(), "{}", again);
            }
        }
    }
}
