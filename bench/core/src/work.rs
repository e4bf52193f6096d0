//! The pieces of work, each on a world made from a fixed seed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use skein_core::balance::{self, AllNear, Constraint};
use skein_core::code::ErrorCode;
use skein_core::explain::{Ended, Kept, Steps, Story, bounded, method};
use skein_core::headers::{self, Forward, Origin};
use skein_core::id::{MachineId, RequestId};
use skein_core::random::Seed;
use skein_core::record::Record;
use skein_core::region::Regions;
use skein_core::replay;
use skein_core::snapshot::{Changes, fold};
use skein_core::wire::{Frame, RequestHead};
use ulid::Ulid;

use crate::world::{APP, World};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Judges an app's thirty Machines and picks one
    Decision,
    /// Judges an app's three Machines and picks one
    Three,
    /// The same, writes it down, and keeps it in place of an older request's
    Told,
    /// Reads an app's instruction to replay
    Replay,
    /// Edits a request's and a response's headers
    Headers,
    /// Encodes and decodes a request's frames
    Frames,
    /// Folds one Machine's change into a snapshot of 10,000
    Fold,
}

impl Work {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How often it is done under valgrind, and then three times as often: some millions of instructions.
    pub(crate) fn times(self) -> u64 {
        match self {
            Self::Three | Self::Told => 10_000,
            Self::Decision | Self::Headers | Self::Frames | Self::Replay => 500,
            Self::Fold => 50,
        }
    }

    /// Does it so often; planted, every tenth time twice.
    pub(crate) fn run(self, times: u64, planted: bool) {
        let mut once: Box<dyn FnMut()> = match self {
            Self::Decision => decision(30),
            Self::Three => decision(3),
            Self::Told => told(),
            Self::Replay => replay(),
            Self::Headers => edit(),
            Self::Frames => frames(),
            Self::Fold => change(),
        };
        for time in 0..times {
            once();
            if planted && time % 10 == 0 {
                once();
            }
        }
    }
}

fn decision(machines: u64) -> Box<dyn FnMut()> {
    let (world, regions) = (World::new(machines, 10).snapshot, Regions::default());
    let (mut rng, constraint) = (Seed::new(1), Constraint::default());
    Box::new(move || {
        let Some(app) = world.apps.get(&APP) else { return };
        let verdicts = balance::candidates(app, &world, 80, &constraint, &AllNear, 1);
        let able: Vec<_> = verdicts.iter().filter_map(|(_, verdict)| (*verdict).ok()).collect();
        let picked = balance::pick(&able, &constraint, &regions, &mut rng);
        black_box(picked.map(|pick| pick.candidate.machine.record.id));
    })
}

fn told() -> Box<dyn FnMut()> {
    let (world, regions) = (World::new(3, 10).snapshot, Regions::default());
    let (mut rng, constraint) = (Seed::new(1), Constraint::default());
    let region = "iad".parse().expect("invariant: a region");
    let kept = Kept::new(4_096);
    let mut request = 0;
    Box::new(move || {
        let Some(app) = world.apps.get(&APP) else { return };
        let verdicts = balance::candidates(app, &world, 80, &constraint, &AllNear, 1);
        let able: Vec<_> = verdicts.iter().filter_map(|(_, verdict)| (*verdict).ok()).collect();
        let picked = balance::pick(&able, &constraint, &regions, &mut rng);
        let mut steps = Steps::default();
        let picked_one = picked.as_ref().ok_or(ErrorCode::PR01);
        steps.at(Duration::ZERO).decided(&verdicts, picked_one, &constraint, &regions);
        request += 1;
        let (steps, steps_left_out) = steps.end();
        let ended = Ended { status: Some(200), complete: true, ..Ended::default() };
        kept.keep(Box::new(Story {
            request_id: RequestId { ulid: Ulid(request), region },
            trace_id: None,
            begun_ms: 0,
            edge: None,
            app: Some(app.app.name.clone()),
            org_id: Some(app.app.org),
            method: method(&Method::GET),
            path: bounded("/a/path/as/many", 256),
            steps,
            steps_left_out,
            ended,
        }));
    })
}

fn replay() -> Box<dyn FnMut()> {
    let regions = Regions::default();
    Box::new(move || {
        let plain = replay::parse(black_box(b"region=lhr"), &regions);
        let full = b"app=other;region=iad,lhr;instance=00000000000001;state=\"a, b\"";
        black_box((plain.is_ok(), replay::parse(black_box(full), &regions).is_ok()));
    })
}

fn edit() -> Box<dyn FnMut()> {
    let (asked, answered, server) = (asked(), answered(), HeaderValue::from_static("Skein/1"));
    let region = "iad".parse().expect("invariant: a region");
    let origin = Origin::new(([198, 51, 100, 7], 5000).into(), ([203, 0, 113, 1], 80).into(), region);
    let id = HeaderValue::from_static("01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad");
    Box::new(move || {
        let (mut asked, mut answered) = (asked.clone(), answered.clone());
        let forward =
            Forward { origin: &origin, request_id: &id, tls: false, version: Version::HTTP_11, start_us: 7 };
        black_box(headers::to_machine(&mut asked, &forward).is_ok());
        headers::to_client(&mut answered, Version::HTTP_11, &server, forward.request_id, None);
        black_box((asked.len(), answered.len()));
    })
}

fn frames() -> Box<dyn FnMut()> {
    let asked = asked();
    Box::new(move || {
        let headers = asked.clone();
        let head = RequestHead { method: "GET".to_owned(), target: "/".to_owned(), headers };
        let mut bytes = Vec::with_capacity(1 << 10);
        for frame in [Frame::RequestHead(head), Frame::Trailers(Vec::new())] {
            black_box(frame.encode(&mut bytes).is_none());
        }
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
            black_box(&frame);
        }
    })
}

fn change() -> Box<dyn FnMut()> {
    let World { mut snapshot, mut first } = World::new(10_000, 100);
    let mut state = false;
    Box::new(move || {
        state = !state;
        first.version += 1;
        let id = MachineId::from_bits(0);
        if let Some(record) = first.machines.get(&id) {
            let changed = Record { cordoned: state, ..Record::clone(record) };
            first.machines.insert(id, Arc::new(changed));
        }
        let changes = Changes { nodes: vec![first.clone()], ..Changes::default() };
        snapshot = fold(&snapshot, changes);
        black_box(snapshot.version);
    })
}

fn asked() -> HeaderMap {
    map(&[
        ("host", "hello.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("cookie", "session=0123456789abcdef0123456789abcdef"),
        ("connection", "keep-alive"),
    ])
}

fn answered() -> HeaderMap {
    map(&[("content-type", "text/html"), ("content-length", "100"), ("connection", "keep-alive")])
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_can_be_done_again_and_again() {
        for work in Work::value_variants() {
            work.run(3, true);
        }
    }

    #[test]
    fn what_is_measured_is_what_is_meant() {
        let World { snapshot, .. } = World::new(30, 10);
        let app = &snapshot.apps[&APP];
        let verdicts = balance::candidates(app, &snapshot, 80, &Constraint::default(), &AllNear, 1);
        assert!(verdicts.iter().all(|(_, verdict)| verdict.is_ok()), "{verdicts:?}");
    }
}
