//! Regions: the documented table, distances, aliases (SPEC CLU-8, RPL-3, TB-4).
//!
//! Source: `reference/regions` of `superfly/docs`. Coordinates are those of the region's airport.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::near::distance;

/// A region's code: 2 to 8 lower-case letters or digits, for example `iad`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionCode([u8; 8]);

impl RegionCode {
    /// The code as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        // Valid by construction: only ASCII bytes are ever stored.
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

/// Why a text is not a region code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("region {0:?} is not valid: use 2 to 8 lower-case letters or digits, for example iad")]
pub struct InvalidRegion(pub String);

impl FromStr for RegionCode {
    type Err = InvalidRegion;
    fn from_str(value: &str) -> Result<Self, InvalidRegion> {
        let bytes = value.as_bytes();
        let valid = (2..=8).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !valid {
            return Err(InvalidRegion(value.chars().take(40).collect()));
        }
        let mut code = [0; 8];
        code[..bytes.len()].copy_from_slice(bytes);
        Ok(Self(code))
    }
}
impl TryFrom<String> for RegionCode {
    type Error = InvalidRegion;
    fn try_from(value: String) -> Result<Self, InvalidRegion> {
        value.parse()
    }
}
impl From<RegionCode> for String {
    fn from(value: RegionCode) -> Self {
        value.as_str().to_owned()
    }
}
impl fmt::Display for RegionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Debug for RegionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A continent, as region aliases of fly-replay name them (SPEC RPL-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Continent {
    /// Africa.
    Africa,
    /// Asia and the Pacific, Oceania included.
    AsiaPacific,
    /// Europe.
    Europe,
    /// North America.
    NorthAmerica,
    /// South America.
    SouthAmerica,
}

/// What is known of a region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Its code.
    pub code: RegionCode,
    /// Its city, for people.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Whether WireGuard peers may be created here.
    pub gateway: bool,
    /// The continent its aliases follow.
    pub continent: Continent,
    /// Whether the alias `us` names it.
    pub united_states: bool,
}

type Row = (&'static str, &'static str, f64, f64, bool, Continent, bool);

use Continent::{Africa, AsiaPacific, Europe, NorthAmerica, SouthAmerica};

#[rustfmt::skip]
const TABLE: [Row; 18] = [
    ("ams", "Amsterdam, Netherlands",       52.31,    4.76, true,  Europe,       false),
    ("arn", "Stockholm, Sweden",            59.65,   17.92, true,  Europe,       false),
    ("bom", "Mumbai, India",                19.09,   72.87, true,  AsiaPacific,  false),
    ("cdg", "Paris, France",                49.01,    2.55, true,  Europe,       false),
    ("dfw", "Dallas, Texas (US)",           32.90,  -97.04, true,  NorthAmerica, true),
    ("ewr", "Secaucus, NJ (US)",            40.69,  -74.17, true,  NorthAmerica, true),
    ("fra", "Frankfurt, Germany",           50.03,    8.57, true,  Europe,       false),
    ("gru", "Sao Paulo, Brazil",           -23.43,  -46.47, false, SouthAmerica, false),
    ("iad", "Ashburn, Virginia (US)",       38.95,  -77.46, true,  NorthAmerica, true),
    ("jnb", "Johannesburg, South Africa",  -26.14,   28.25, false, Africa,       false),
    ("lax", "Los Angeles, California (US)", 33.94, -118.41, true,  NorthAmerica, true),
    ("lhr", "London, United Kingdom",       51.47,   -0.45, true,  Europe,       false),
    ("nrt", "Tokyo, Japan",                 35.76,  140.39, true,  AsiaPacific,  false),
    ("ord", "Chicago, Illinois (US)",       41.98,  -87.90, true,  NorthAmerica, true),
    ("sin", "Singapore, Singapore",          1.36,  103.99, true,  AsiaPacific,  false),
    ("sjc", "San Jose, California (US)",    37.36, -121.93, true,  NorthAmerica, true),
    ("syd", "Sydney, Australia",           -33.95,  151.18, true,  AsiaPacific,  false),
    ("yyz", "Toronto, Canada",              43.68,  -79.63, true,  NorthAmerica, false),
];

/// Regions that the documentation listed once and lists no more: configurations still name them.
const RETIRED: [&str; 20] = [
    "atl", "bog", "bos", "den", "dxb", "eze", "gdl", "gig", "hkg", "ist", "mad", "mel", "mia", "otp", "phx",
    "qro", "scl", "sea", "waw", "yul",
];

/// Whether a region was given up: it has no place in the table, and was no mistake when it was written.
pub fn is_retired(code: RegionCode) -> bool {
    RETIRED.contains(&code.as_str())
}

/// The regions a cluster knows: the documented ones and those that its configuration adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Regions(BTreeMap<RegionCode, Region>);

/// A region code that the table does not hold; the message names near ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no region {code:?}; near ones are {}; `skein regions` lists all", near.join(", "))]
pub struct UnknownRegion {
    /// The code that was asked for.
    pub code: String,
    /// Up to three codes spelled nearly the same.
    pub near: Vec<String>,
}

impl Default for Regions {
    fn default() -> Self {
        let row = |&(code, name, latitude, longitude, gateway, continent, united_states): &Row| {
            let code: RegionCode = code.parse().ok()?;
            let name = name.to_owned();
            Some((code, Region { code, name, latitude, longitude, gateway, continent, united_states }))
        };
        Self(TABLE.iter().filter_map(row).collect())
    }
}

impl Regions {
    /// The same table with `region` added or replaced.
    pub fn with(mut self, region: Region) -> Self {
        self.0.insert(region.code, region);
        self
    }

    /// All regions, by code.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.values()
    }

    /// The region of that code.
    pub fn get(&self, code: RegionCode) -> Option<&Region> {
        self.0.get(&code)
    }

    /// The region that `text` names.
    ///
    /// # Errors
    /// [`UnknownRegion`] with near codes when the table does not hold it.
    pub fn find(&self, text: &str) -> Result<&Region, UnknownRegion> {
        if let Some(region) = text.parse().ok().and_then(|code| self.0.get(&code)) {
            return Ok(region);
        }
        let mut near: Vec<(usize, &str)> =
            self.0.keys().map(|code| (distance(text, code.as_str()), code.as_str())).collect();
        near.sort_unstable();
        Err(UnknownRegion {
            code: text.chars().take(40).collect(),
            near: near.into_iter().take(3).map(|(_, code)| code.to_owned()).collect(),
        })
    }

    /// Great-circle distance in kilometres; 0 when either is unknown.
    pub fn distance_km(&self, a: RegionCode, b: RegionCode) -> f64 {
        let (Some(a), Some(b)) = (self.get(a), self.get(b)) else { return 0.0 };
        let (la, lb) = (a.latitude.to_radians(), b.latitude.to_radians());
        let (dlat, dlon) = (lb - la, (b.longitude - a.longitude).to_radians());
        let h = (dlat / 2.0).sin().powi(2) + la.cos() * lb.cos() * (dlon / 2.0).sin().powi(2);
        2.0 * 6371.0 * h.sqrt().min(1.0).asin()
    }

    /// The simulated round trip between two regions: 4 ms + km/75 (SPEC TB-4); zero inside one.
    pub fn simulated_rtt(&self, a: RegionCode, b: RegionCode) -> Duration {
        if a == b {
            return Duration::ZERO;
        }
        Duration::from_micros(((4.0 + self.distance_km(a, b) / 75.0) * 1000.0) as u64)
    }

    /// Whether `code` is among what the alias or code `name` means; `None` when `name` is neither.
    ///
    /// Aliases: `apac eu na sa us usa any` (SPEC RPL-3).
    pub fn matches(&self, name: &str, code: RegionCode) -> Option<bool> {
        let on = |continent| self.get(code).is_some_and(|region| region.continent == continent);
        match name {
            "any" => Some(true),
            "apac" => Some(on(AsiaPacific)),
            "eu" => Some(on(Europe)),
            "na" => Some(on(NorthAmerica)),
            "sa" => Some(on(SouthAmerica)),
            "us" | "usa" => Some(self.get(code).is_some_and(|region| region.united_states)),
            other => Some(self.get(other.parse().ok()?)?.code == code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> RegionCode {
        text.parse().unwrap()
    }

    #[test]
    fn the_documented_eighteen_are_there() {
        assert_eq!(Regions::default().iter().count(), 18);
    }

    #[test]
    fn an_unknown_code_is_an_error_that_names_near_ones() {
        let error = Regions::default().find("lhx").unwrap_err();
        assert_eq!(error.near.len(), 3);
        assert!(error.near.contains(&"lhr".to_owned()), "{error}");
        for wrong in ["lrh", "LHR "] {
            let error = Regions::default().find(wrong).unwrap_err();
            assert_eq!(error.near[0], "lhr", "{error}");
        }
    }

    #[test]
    fn london_is_nearer_to_ashburn_than_tokyo_is() {
        let regions = Regions::default();
        let rtt = |a, b| regions.simulated_rtt(code(a), code(b));
        assert!(rtt("iad", "lhr") < rtt("iad", "nrt"));
        assert!((rtt("iad", "lhr").as_millis() as i64 - 83).abs() <= 3, "{:?}", rtt("iad", "lhr"));
        assert_eq!(rtt("iad", "iad"), Duration::ZERO);
        assert_eq!(rtt("iad", "nrt"), rtt("nrt", "iad"));
    }

    #[test]
    fn aliases_name_continents_and_unknown_names_nothing() {
        let regions = Regions::default();
        assert_eq!(regions.matches("us", code("iad")), Some(true));
        assert_eq!(regions.matches("us", code("yyz")), Some(false));
        assert_eq!(regions.matches("na", code("yyz")), Some(true));
        assert_eq!(regions.matches("eu", code("lhr")), Some(true));
        assert_eq!(regions.matches("lhr", code("lhr")), Some(true));
        assert_eq!(regions.matches("zzz", code("lhr")), None);
    }
}
