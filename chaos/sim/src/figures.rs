//! Figures of gossip at several sizes and losses, as a table and a plot.

use std::fmt::Write as _;

use skein_core::NodeNumber;
use skein_core::fault::LinkRule;
use skein_core::random::Seed;
use skein_core::suspicion::SILENCE;
use skein_core::{Random, region::Regions};

use crate::agenda::{Agenda, MS, Micros, SECOND, micros};
use crate::bare::{Bare, region_of};
use crate::fit::gossip::measure;
use crate::gossip::Params;
use crate::net::{Class, Network};
use crate::peers::{Clock, PROBE, Peers};

/// What was measured of one case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// How many nodes.
    pub nodes: u32,
    /// The share of packets that is lost.
    pub loss: f64,
    /// Milliseconds until the last node has a change: the median and the 99th percentile.
    pub everywhere: (f64, f64),
    /// Messages that a change costs.
    pub messages: f64,
    /// Their kilobytes.
    pub kilobytes: f64,
    /// Milliseconds until the first node, and until the last, calls a dead one dead; medians.
    pub detected: (f64, f64),
    /// Pairs of living nodes of which one called the other dead, at most.
    pub called_dead: usize,
    /// Milliseconds until an edge in use of a dead peer suspects it; the median.
    pub suspected: f64,
    /// Living peers in use that were suspected, per hour and link.
    pub false_suspicions: f64,
}

/// Measures a case.
pub fn figure(nodes: u32, loss: f64, seed: &Seed) -> anyhow::Result<Figure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let mut bare = Bare::new(nodes, Params::default(), seed);
    bare.set_weather(LinkRule { loss, ..LinkRule::default() });
    let changes = if nodes > 100 { 30 } else { 100 };
    let deaths = if nodes > 100 { 4 } else { 10 };
    let measured = runtime.block_on(measure(&mut bare, nodes, changes, deaths, seed));
    let (suspected, false_suspicions) = suspicion(loss, seed);
    Ok(Figure {
        nodes,
        loss,
        everywhere: (measured.change.percentile(0.5), measured.change.percentile(0.99)),
        messages: measured.messages,
        kilobytes: measured.kilobytes,
        detected: (measured.detected.percentile(0.5), measured.detected_by_all.percentile(0.5)),
        called_dead: measured.wrong,
        suspected,
        false_suspicions,
    })
}

/// Probes over every pair of regions for an hour, then to a peer that is dead: milliseconds until it
/// is suspect (the median), and false suspicions per hour and link.
fn suspicion(loss: f64, seed: &Seed) -> (f64, f64) {
    enum Probe {
        Sent,
        Back(Micros),
    }
    let regions = Regions::default();
    let count = regions.iter().count() as u32;
    let places: Vec<_> = (1..=count).map(NodeNumber).map(|n| (n, region_of(&regions, n))).collect();
    let mut network = Network::new(std::sync::Arc::default(), seed.child("probes"));
    network.add(places.iter().copied());
    network.set_weather(LinkRule { loss, ..LinkRule::default() });
    let clock: std::sync::Arc<Clock> = std::sync::Arc::default();
    let here = NodeNumber(1);
    let peers = Peers::new(here, &places, &regions, &clock);
    let mut phase = seed.child("phase");
    let (mut wrong, mut after) = (0u32, Vec::new());
    let hour = 3_600 * SECOND;
    for (number, peer) in peers.iter() {
        let mut agenda = Agenda::default();
        clock.set(0);
        agenda.at(phase.below(PROBE as usize) as Micros, Probe::Sent);
        let mut was = false;
        while let Some(event) = agenda.next(hour) {
            clock.set(agenda.now());
            let suspect = peer.suspect_at().is_none();
            wrong += u32::from(suspect && !was);
            was = suspect;
            match event {
                Probe::Sent => {
                    peer.owes();
                    let now = agenda.now();
                    for there in network.send(now, here, number, Class::Datagram, 60) {
                        for back in network.send(there, number, here, Class::Datagram, 60) {
                            agenda.at(back, Probe::Back(now));
                        }
                    }
                    agenda.after(PROBE, Probe::Sent);
                }
                Probe::Back(sent) => {
                    peer.heard();
                    peer.measured(agenda.now() - sent);
                }
            }
        }
        // It dies now; the next probe is not answered.
        peer.heard();
        let next = hour + phase.below(PROBE as usize) as Micros;
        clock.set(next);
        peer.owes();
        let at = peer.suspect_at().unwrap_or(next);
        after.push((at - hour) as f64 / MS as f64);
    }
    after.sort_by(f64::total_cmp);
    debug_assert!(after.first().is_none_or(|least| *least * 1_000.0 >= micros(SILENCE) as f64));
    (after[after.len() / 2], f64::from(wrong) / f64::from(count - 1))
}

/// The figures as a table of Markdown.
pub fn table(figures: &[Figure]) -> String {
    let mut text = String::from(
        "| nodes | loss | change everywhere p50 / p99 | messages per change | kB per change | death known to first / all | living called dead | dead peer suspected | false suspicions per link and hour |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for f in figures {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {:.0} % | {:.0} / {:.0} ms | {:.0} | {:.0} | {:.1} / {:.1} s | {} | {:.0} ms | {:.1} |",
            f.nodes,
            f.loss * 100.0,
            f.everywhere.0,
            f.everywhere.1,
            f.messages,
            f.kilobytes,
            f.detected.0 / 1_000.0,
            f.detected.1 / 1_000.0,
            f.called_dead,
            f.suspected,
            f.false_suspicions,
        );
    }
    text
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 270.0;
const COLOURS: [&str; 3] = ["#2b6cb0", "#dd8452", "#c44e52"];

/// The time of a change to all, 99th percentile, by nodes and loss, as bars in SVG.
pub fn plot(figures: &[Figure]) -> String {
    let most = figures.iter().map(|f| f.everywhere.1).fold(1.0, f64::max);
    let scale = (BOTTOM - 40.0) / most;
    let mut sizes: Vec<u32> = figures.iter().map(|f| f.nodes).collect();
    sizes.dedup();
    let mut losses: Vec<f64> = figures.iter().map(|f| f.loss).collect();
    losses.sort_by(f64::total_cmp);
    losses.dedup();
    let group = (WIDTH - LEFT - 20.0) / sizes.len().max(1) as f64;
    let bar = group * 0.7 / losses.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<text x=\"{LEFT}\" y=\"18\">Until the last node has a change: p50 (dark) and p99 (light), ms</text>\n"
    );
    for step in 0..=4 {
        let value = most * f64::from(step) / 4.0;
        let y = BOTTOM - value * scale;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for f in figures {
        let place = |at: Option<usize>| at.unwrap_or(0) as f64;
        let size = place(sizes.iter().position(|nodes| *nodes == f.nodes));
        let index = losses.iter().position(|loss| *loss == f.loss).unwrap_or(0);
        let x = LEFT + size * group + group * 0.15 + index as f64 * bar;
        let colour = COLOURS[index % COLOURS.len()];
        for (value, opacity) in [(f.everywhere.1, 0.4), (f.everywhere.0, 1.0)] {
            let height = value * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\" opacity=\"{opacity}\"/>",
                BOTTOM - height,
                bar - 3.0
            );
        }
    }
    for (place, nodes) in sizes.iter().enumerate() {
        let x = LEFT + (place as f64 + 0.5) * group;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{nodes} nodes</text>",
            BOTTOM + 18.0
        );
    }
    for (place, loss) in losses.iter().enumerate() {
        let x = LEFT + place as f64 * 110.0;
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"298\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"309\">{:.0} % loss</text>",
            x + 18.0,
            loss * 100.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_figures_and_both_forms_show_it() {
        let figure = figure(6, 0.02, &Seed::new(1)).unwrap();
        assert!(figure.everywhere.0 > 20.0 && figure.everywhere.1 >= figure.everywhere.0, "{figure:?}");
        assert!(
            figure.detected.1 >= 2_000.0 && figure.messages > 5.0 && figure.suspected > 750.0,
            "{figure:?}"
        );
        assert!(table(&[figure]).contains("| 6 | 2 % |"));
        assert!(plot(&[figure]).matches("<rect").count() == 3);
    }
}
