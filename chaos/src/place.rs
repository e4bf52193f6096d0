//! Where a fault of links begins and ends.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use skein_testbed::NodeSpec;

/// A node, a region, or all other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Place {
    /// Every node but those of the other place: written `everyone`.
    Everyone,
    /// The node of that name, else the nodes of the region of that code.
    Named(String),
}

/// A place that the cluster does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place:?} is neither a node nor a region here; there are {known}")]
pub struct UnknownPlace {
    place: String,
    known: String,
}

impl Place {
    /// The indexes of its nodes among `nodes`, in their order.
    ///
    /// # Errors
    /// [`UnknownPlace`] when none of them is meant.
    pub fn find(&self, nodes: &[NodeSpec]) -> Result<Vec<usize>, UnknownPlace> {
        let all = 0..nodes.len();
        let Self::Named(place) = self else { return Ok(all.collect()) };
        if let Some(index) = nodes.iter().position(|node| node.name.as_str() == place) {
            return Ok(vec![index]);
        }
        let here: Vec<usize> = all.filter(|index| nodes[*index].region.as_str() == place).collect();
        if here.is_empty() {
            let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let place = place.chars().take(80).collect();
            return Err(UnknownPlace { place, known: known.join(", ") });
        }
        Ok(here)
    }
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        if text == "everyone" { Self::Everyone } else { Self::Named(text) }
    }
}
impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}
impl FromStr for Place {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everyone => "everyone",
            Self::Named(name) => name,
        })
    }
}
