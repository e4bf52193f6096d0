//! What was true when.

use crate::agenda::Micros;

/// The values that something had, each from its moment on.
#[derive(Debug, Clone)]
pub(super) struct History<T>(Vec<(Micros, T)>);

impl<T> Default for History<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> History<T> {
    pub(super) fn set(&mut self, at: Micros, value: T) {
        if self.now() != Some(value) {
            self.0.push((at, value));
        }
    }

    pub(super) fn now(&self) -> Option<T> {
        self.0.last().map(|(_, value)| *value)
    }

    /// Whether it ever was so between both moments, both included.
    pub(super) fn ever(&self, from: Micros, to: Micros, so: impl Fn(T) -> bool) -> bool {
        self.spans(so).any(|(start, end)| start <= to && end >= from)
    }

    /// When it was so: begins and ends, the last without an end if it still is.
    pub(super) fn spans(&self, so: impl Fn(T) -> bool) -> impl Iterator<Item = (Micros, Micros)> {
        let next = |index: usize| self.0.get(index + 1).map_or(Micros::MAX, |(at, _)| *at);
        let spans = self.0.iter().enumerate().filter(move |(_, (_, value))| so(*value));
        spans.map(move |(index, (at, _))| (*at, next(index)))
    }

    /// When it first was anything.
    pub(super) fn begin(&self) -> Option<Micros> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(super) fn began_after(&self, from: Micros) -> bool {
        self.0.first().is_none_or(|(at, _)| *at > from)
    }
}
