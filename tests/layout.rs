//! What may depend on what (DESIGN sections 1 and 7), read from `cargo metadata`.
//!
//! A direction that only a diagram holds is lost within a month; each ban here carries its reason,
//! so that whoever meets it knows what would break.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// The crates of the workspace that each crate may use, and why no others.
const MAY_USE: &[(&str, &[&str], &str)] = &[
    ("skein-core", &[], "decisions are pure: they must run in a property test and in the simulator"),
    ("skein-cluster", &["skein-core"], "what the cluster knows must not know who acts on it"),
    ("skein-supervise", &["skein-core"], "every kind of actor shares it, so it knows none of them"),
    (
        "skein-edge",
        &["skein-cluster", "skein-core", "skein-supervise"],
        "kinds of actors know each other through messages and snapshots, never as crates",
    ),
    (
        "skein-machine",
        &["skein-cluster", "skein-core", "skein-supervise"],
        "kinds of actors know each other through messages and snapshots, never as crates",
    ),
    ("skein-testbed", &["skein-core"], "nodes are its subject: it starts the program and speaks its API"),
    ("skein-chaos", &["skein-core", "skein-testbed"], "an oracle that reads a node's insides proves nothing"),
    ("skein-sim", &["skein-cluster", "skein-core"], "it simulates what decides, not what moves bytes"),
    ("skein-bench", &[], "it measures from outside, as it measures the peers"),
    ("skein-bench-core", &["skein-core"], "it counts what decisions cost, and nothing else"),
    (
        "skein",
        &[
            "skein-chaos",
            "skein-cluster",
            "skein-core",
            "skein-edge",
            "skein-machine",
            "skein-supervise",
            "skein-testbed",
        ],
        "it puts everything together, and the simulator is no part of a program",
    ),
];

/// Libraries that only some crates of the workspace may name.
const WRAPPED: &[(&str, &[&str], &str)] = &[
    ("bincode", &["skein-core"], "one codec module with a version byte; the crate is unmaintained"),
    ("chitchat", &["skein-cluster"], "its types stay behind skein-cluster's own, so it can be replaced"),
    ("openraft", &["skein-cluster"], "its types stay behind skein-cluster's own, so it can be replaced"),
    ("quinn", &["skein-cluster"], "every node-to-node byte passes backhaul and the link shim"),
    ("redb", &["skein-cluster"], "one store, one place that decides what is durable"),
    (
        "rustls",
        &["skein", "skein-cluster", "skein-edge", "skein-machine"],
        "TLS ends at an edge, between nodes, or at the app that a check asks",
    ),
    (
        "ractor",
        &["skein", "skein-edge", "skein-machine", "skein-supervise"],
        "actors own state; what decides and what is asked about it has none",
    ),
    ("saphyr-parser", &["skein-core"], "only the reader of fly.yaml needs to see YAML's events"),
    ("toml_parser", &["skein-core"], "only the reader of fly.toml needs to see tokens"),
];

/// Crates that `skein-core` may not have, not even through others.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("mio", "sockets"),
    ("socket2", "sockets"),
    ("chrono", "ambient time"),
    ("tracing", "ambient context"),
    ("ractor", "actors"),
];

/// Crates that `skein-core` may not name; imbl and ulid bring them and are not asked to use them.
const RANDOM: &[&str] = &["fastrand", "getrandom", "rand"];

/// Crates that must not be in the program at all.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-sys", "one crypto provider, ring: a second one needs cmake and doubles what must be trusted"),
    ("aws-lc-rs", "one crypto provider, ring"),
    ("openssl-sys", "no C library on the machine that builds it"),
    ("native-tls", "rustls everywhere"),
    ("async-std", "one runtime, tokio"),
];

/// Second versions of direct dependencies that cannot be helped.
const TWICE: &[(&str, &str)] =
    &[("thiserror", "1.x under openraft and chitchat; a derive macro, nothing of it is in an API of ours")];

/// Licences that go with Apache-2.0 in a program that is given away.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0+",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

struct Graph {
    /// By id.
    packages: BTreeMap<String, Value>,
    /// Ids of what each package is built with on this computer, tests apart.
    uses: BTreeMap<String, BTreeSet<String>>,
    members: BTreeSet<String>,
}

impl Graph {
    /// Of this computer: crates for other systems are neither built nor fetched here.
    fn read() -> Self {
        let version = Command::new(env!("CARGO")).arg("-vV").output().unwrap();
        let version = String::from_utf8(version.stdout).unwrap();
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let out = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host])
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
        let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
        let list = |value: &Value| value.as_array().unwrap().clone();
        let packages = list(&metadata["packages"]).into_iter().map(|p| (id(&p), p)).collect();
        let uses = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let deps = list(&node["deps"]);
                let built =
                    deps.iter().filter(|dep| list(&dep["dep_kinds"]).iter().any(|k| k["kind"] != "dev"));
                (id(node), built.map(|dep| dep["pkg"].as_str().unwrap().to_owned()).collect())
            })
            .collect();
        let members = list(&metadata["workspace_members"]);
        Self { packages, uses, members: members.iter().map(|m| m.as_str().unwrap().to_owned()).collect() }
    }

    fn name(&self, id: &str) -> String {
        self.packages[id]["name"].as_str().unwrap().to_owned()
    }

    /// Names of what a member's manifest names, its tests included.
    fn direct(&self, id: &str) -> BTreeSet<String> {
        let dependencies = self.packages[id]["dependencies"].as_array().unwrap();
        dependencies.iter().map(|dep| dep["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Ids of all that is built for these, themselves included, and a path to each.
    fn reach(&self, roots: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
        let mut reached = BTreeMap::new();
        let mut next: Vec<(String, String)> = roots.into_iter().map(|id| (id, String::new())).collect();
        while let Some((id, from)) = next.pop() {
            let path = format!("{from} → {}", self.name(&id));
            if reached.insert(id.clone(), path.clone()).is_none() {
                next.extend(self.uses[&id].iter().map(|dep| (dep.clone(), path.clone())));
            }
        }
        reached
    }
}

#[test]
fn crates_of_the_workspace_use_each_other_in_one_direction() {
    let graph = Graph::read();
    let members: BTreeSet<String> = graph.members.iter().map(|id| graph.name(id)).collect();
    for id in &graph.members {
        let name = graph.name(id);
        let rule = MAY_USE.iter().find(|(crate_name, _, _)| *crate_name == name);
        let (_, allowed, reason) =
            rule.unwrap_or_else(|| panic!("{name} has no rule; give it one, with a reason"));
        for used in graph.direct(id).intersection(&members) {
            assert!(allowed.contains(&used.as_str()), "{name} must not use {used}: {reason}");
        }
    }
}

#[test]
fn libraries_stay_behind_the_crate_that_wraps_them() {
    let graph = Graph::read();
    for id in &graph.members {
        let name = graph.name(id);
        for used in graph.direct(id) {
            let rule = WRAPPED.iter().find(|(library, _, _)| *library == used);
            if let Some((_, wrappers, reason)) = rule {
                assert!(wrappers.contains(&name.as_str()), "{name} must not name {used}: {reason}");
            }
        }
    }
}

#[test]
fn core_is_pure() {
    let graph = Graph::read();
    let core = graph.members.iter().find(|id| graph.name(id) == "skein-core").unwrap().clone();
    for name in graph.direct(&core) {
        assert!(!RANDOM.contains(&name.as_str()), "ambient randomness in skein-core: {name}");
    }
    for (id, path) in graph.reach([core]) {
        let name = graph.name(&id);
        let ban = IMPURE.iter().find(|(library, _)| *library == name);
        assert!(ban.is_none(), "{} in skein-core, by{path}", ban.unwrap().1);
    }
}

#[test]
fn bugs_are_planted_in_the_simulators_own_build_only() {
    let graph = Graph::read();
    for id in &graph.members {
        let name = graph.name(id);
        for dependency in graph.packages[id]["dependencies"].as_array().unwrap() {
            let features = dependency["features"].as_array().unwrap();
            assert!(features.iter().all(|feature| feature != "planted"), "{name} always plants bugs");
        }
        for (feature, implied) in graph.packages[id]["features"].as_object().unwrap() {
            let plants = implied.as_array().unwrap().iter().any(|f| f.as_str().unwrap().ends_with("planted"));
            let simulator = name == "skein-sim" && feature == "planted";
            assert!(!plants || simulator, "the feature {feature} of {name} plants bugs");
        }
    }
}

#[test]
fn fixtures_are_in_tests_and_in_the_simulator_only() {
    let graph = Graph::read();
    let mut asked = 0;
    for id in &graph.members {
        let name = graph.name(id);
        for dependency in graph.packages[id]["dependencies"].as_array().unwrap() {
            let features = dependency["features"].as_array().unwrap();
            let fixtures = features.iter().any(|feature| feature == "testing");
            let allowed = dependency["kind"] == "dev" || name == "skein-sim";
            assert!(!fixtures || allowed, "{name} has fixtures of tests in its own build");
            asked += u32::from(fixtures);
        }
        for (feature, implied) in graph.packages[id]["features"].as_object().unwrap() {
            let fixtures =
                implied.as_array().unwrap().iter().any(|f| f.as_str().unwrap().ends_with("testing"));
            assert!(!fixtures, "the feature {feature} of {name} brings fixtures of tests");
        }
    }
    assert!(asked > 2, "somebody uses them");
}

#[test]
fn banned_crates_are_not_in_the_program() {
    let graph = Graph::read();
    for (id, path) in graph.reach(graph.members.clone()) {
        let name = graph.name(&id);
        let ban = BANNED.iter().find(|(library, _)| *library == name);
        assert!(ban.is_none(), "{name} is banned: {}; it comes by{path}", ban.unwrap().1);
    }
}

#[test]
fn no_direct_dependency_is_there_in_two_versions() {
    let graph = Graph::read();
    let direct: BTreeSet<String> = graph.members.iter().flat_map(|id| graph.direct(id)).collect();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, path) in graph.reach(graph.members.clone()) {
        let version = graph.packages[&id]["version"].as_str().unwrap();
        versions.entry(graph.name(&id)).or_default().push(format!("{version} by{path}"));
    }
    for (name, list) in versions.iter().filter(|(name, list)| list.len() > 1 && direct.contains(*name)) {
        let known = TWICE.iter().any(|(library, _)| library == name);
        assert!(known, "{name} is there in {} versions: {list:#?}", list.len());
    }
    for (name, reason) in TWICE {
        let twice = versions.get(*name).is_some_and(|list| list.len() > 1);
        assert!(twice, "{name} is there once only, so its exception can go: {reason}");
    }
}

#[test]
fn every_dependency_comes_from_crates_io_under_a_licence_that_fits() {
    let graph = Graph::read();
    for (id, path) in graph.reach(graph.members.clone()) {
        let package = &graph.packages[&id];
        if graph.members.contains(&id) {
            assert_eq!(package["license"], "Apache-2.0", "{id}");
            continue;
        }
        let source = package["source"].as_str().unwrap_or("a folder");
        assert!(
            source.starts_with("registry+https://github.com/rust-lang/crates.io-index"),
            "{source}: {path}"
        );
        let expression = package["license"].as_str().unwrap_or_default();
        assert!(fits(expression), "licence {expression:?} of{path}");
    }
}

/// Whether one choice that the expression offers fits whole.
fn fits(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let mut all = plain.split(" AND ").map(|part| {
        let mut choices =
            part.split(" OR ").map(|choice| choice.split(" WITH ").next().unwrap_or_default().trim());
        choices.any(|choice| LICENCES.contains(&choice))
    });
    all.all(|fits| fits)
}

#[test]
fn licence_expressions_are_read_as_written() {
    for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(fits(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0"] {
        assert!(!fits(bad), "{bad}");
    }
}
