//! What was decided for a request, asked of the edges that may know (SPEC OBS-5).

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use skein_cluster::clock;
use skein_core::explain::{Story, Wanted};
use skein_core::facts::Scope;
use skein_core::snapshot::Snapshot;
use skein_core::wire::Ask;
use skein_core::{NodeName, NodeNumber};
use tokio::task::JoinSet;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::body::{Params, ok};
use crate::api::error::ApiError;
use crate::api::forward;

/// The longest a caller may wait for a request to end.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long it is waited before the edges are asked again, at first; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// At most that long.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// Nodes that an answer names; the rest is counted.
const NAMED: usize = 10;

/// The story of a request, from whichever edge met it; `wait_ms` is how long it is waited for.
pub(super) async fn explain(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let wanted: Wanted = id.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let patience = match params.get("wait_ms").map(str::parse) {
        None => Duration::ZERO,
        Some(Ok(wait)) => Duration::from_millis(wait).min(LONGEST_WAIT),
        Some(Err(_)) => return Err(ApiError::bad_request("wait_ms is a number of milliseconds")),
    };
    let deadline = clock::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let edges = Edges::of(&state.node().reader.load(), wanted);
        let answers = edges.ask(&state, wanted).await;
        let told = answers.stories.iter().filter(|story| sees(&caller, story));
        if let Some(story) = told.max_by_key(|story| story.request_id) {
            return Ok(ok(story));
        }
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(edges.unknown(wanted, &answers, state.node().edge.explained()));
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A request belongs to the organization whose app it named; one that named none to the operator.
fn sees(caller: &Caller, story: &Story) -> bool {
    story.org_id.map_or(caller.scope == Scope::Cluster, |org| caller.sees(org))
}

/// Nodes whose edges may know.
#[derive(Debug, Default)]
struct Edges {
    alive: Vec<(NodeNumber, NodeName)>,
    dead: Vec<NodeName>,
}

/// What they said.
#[derive(Debug, Default)]
struct Answers {
    stories: Vec<Story>,
    /// Who answered.
    asked: Vec<NodeName>,
    /// Who did not, and why.
    silent: Vec<String>,
}

impl Edges {
    /// A request's id names the region of its edge; a trace's may be anywhere.
    fn of(snapshot: &Snapshot, wanted: Wanted) -> Self {
        let mut edges = Self::default();
        for (number, node) in &snapshot.nodes {
            let record = &node.record;
            let elsewhere = matches!(wanted, Wanted::Request(id) if id.region != record.region);
            match node.alive {
                _ if elsewhere => {}
                true => edges.alive.push((*number, record.name.clone())),
                false => edges.dead.push(record.name.clone()),
            }
        }
        edges
    }

    async fn ask(&self, state: &ApiState, wanted: Wanted) -> Answers {
        let mut asked = JoinSet::new();
        for (number, name) in self.alive.iter().cloned() {
            let state = state.clone();
            asked.spawn(async move { (name, one(&state, number, wanted).await) });
        }
        let mut answers = Answers::default();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((name, Ok(story))) => {
                    answers.stories.extend(story);
                    answers.asked.push(name);
                }
                Ok((name, Err(why))) => answers.silent.push(format!("{name} does not answer ({why})")),
                Err(error) => tracing::error!(%error, "a question to an edge failed"),
            }
        }
        answers.asked.sort();
        answers.silent.sort();
        answers
    }

    /// Why there is no story.
    fn unknown(&self, wanted: Wanted, answers: &Answers, (all, failed): (usize, usize)) -> ApiError {
        let whose = match wanted {
            Wanted::Request(id) => format!("request {id}"),
            Wanted::Trace(id) => format!("a request of trace {id}"),
        };
        let dead = self.dead.iter().map(|name| format!("{name} is dead"));
        let not_asked: Vec<String> = dead.chain(answers.silent.iter().cloned()).collect();
        let not_asked = (!not_asked.is_empty()).then(|| listed(&not_asked));
        if answers.asked.is_empty() {
            return match (wanted, not_asked) {
                (_, Some(not_asked)) => ApiError::unavailable(format!(
                    "no edge that may know {whose} answers: {not_asked}; see `skein status`"
                )),
                (Wanted::Request(id), None) => {
                    let region = id.region;
                    let error = format!(
                        "no node is in {region}: {whose} came to another cluster, or to a node that was removed"
                    );
                    ApiError::new(StatusCode::NOT_FOUND, error)
                }
                (Wanted::Trace(_), None) => ApiError::unavailable("no node is known yet"),
            };
        }
        let names: Vec<String> = answers.asked.iter().map(ToString::to_string).collect();
        let but = not_asked.map(|not_asked| format!("; {not_asked}")).unwrap_or_default();
        let traced = match wanted {
            Wanted::Request(_) => "",
            Wanted::Trace(_) => "was not traced, ",
        };
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!(
                "no edge knows {whose} (asked: {}{but}): it {traced}never came there, has not ended yet, or is \
                 forgotten: each edge keeps the newest {all} requests, and {failed} more that failed or were tried again",
                listed(&names)
            ),
        )
    }
}

/// What one edge knows.
async fn one(state: &ApiState, number: NodeNumber, wanted: Wanted) -> Result<Option<Story>, String> {
    let node = state.node();
    if number == node.number {
        return Ok(node.edge.explain(wanted));
    }
    let ask = Ask::Explain(wanted.to_string());
    let answer = node.backhaul.ask(number, ask, forward::READ).await.map_err(|error| error.to_string())?;
    if answer.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&answer).map(Some).map_err(|error| format!("its answer can't be read: {error}"))
}

fn listed(texts: &[String]) -> String {
    let more = texts.len().saturating_sub(NAMED);
    let named = texts.iter().take(NAMED).cloned();
    let more = (more > 0).then(|| format!("{more} more"));
    named.chain(more).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use skein_core::facts::Scope;
    use skein_core::snapshot::{Changes, NodeFacts, fold};
    use skein_core::{OrgId, TokenId};
    use ulid::Ulid;

    use super::*;

    const REQUEST: &str = "01JNRQ9VVKJ7HZFMJWJB3M3RYN-lhr";
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn snapshot(nodes: &[(u32, &str, bool)]) -> Snapshot {
        let nodes = nodes.iter().map(|&(number, region, alive)| NodeFacts {
            record: skein_core::key::NodeRecord {
                number: NodeNumber(number),
                name: format!("{region}-{number}").parse().unwrap(),
                region: region.parse().unwrap(),
                backhaul: "127.0.0.1:1".parse().unwrap(),
                api: "127.0.0.1:2".parse().unwrap(),
                draining: false,
                build: String::new(),
            },
            generation: 1,
            version: 1,
            alive,
            confirmed: std::sync::Arc::default(),
            machines: imbl::OrdMap::new(),
        });
        fold(&Snapshot::default(), Changes { nodes: nodes.collect(), ..Changes::default() })
    }

    #[test]
    fn a_requests_id_leads_to_the_live_nodes_of_its_region_and_a_traces_to_all() {
        let snapshot = snapshot(&[(1, "iad", true), (2, "lhr", true), (3, "lhr", false)]);
        let of = |wanted: &str| {
            let edges = Edges::of(&snapshot, wanted.parse().unwrap());
            let alive: Vec<u32> = edges.alive.iter().map(|(number, _)| number.0).collect();
            (alive, edges.dead.len())
        };
        assert_eq!(of(REQUEST), (vec![2], 1));
        assert_eq!(of(TRACE), (vec![1, 2], 1));
    }

    #[test]
    fn without_a_story_the_answer_says_who_was_asked_and_why_there_may_be_none() {
        let error = |nodes: &[(u32, &str, bool)], wanted: &str, asked: &[&str], silent: &[&str]| {
            let answers = Answers {
                stories: Vec::new(),
                asked: asked.iter().map(|name| name.parse().unwrap()).collect(),
                silent: silent.iter().map(|text| (*text).to_owned()).collect(),
            };
            let wanted: Wanted = wanted.parse().unwrap();
            let error = Edges::of(&snapshot(nodes), wanted).unknown(wanted, &answers, (4096, 1024));
            (error.status.as_u16(), error.error)
        };
        let (status, text) = error(&[(1, "iad", true)], REQUEST, &[], &[]);
        assert_eq!(status, 404);
        assert!(text.contains("no node is in lhr") && text.contains(REQUEST), "{text}");
        let (status, text) = error(&[(2, "lhr", false)], REQUEST, &[], &[]);
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("lhr-2 is dead"), "{text}");
        let (status, text) = error(&[(2, "lhr", true)], REQUEST, &[], &["lhr-2 does not answer (timeout)"]);
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("lhr-2 does not answer"), "{text}");
        let (status, text) = error(&[(2, "lhr", true), (3, "lhr", false)], REQUEST, &["lhr-2"], &[]);
        assert_eq!(status, 404);
        for word in ["asked: lhr-2; lhr-3 is dead", "newest 4096 requests", "1024 more"] {
            assert!(text.contains(word), "{text}");
        }
        let (_, text) = error(&[(1, "iad", true)], TRACE, &["iad-1"], &[]);
        assert!(text.contains("was not traced"), "{text}");
    }

    #[test]
    fn many_nodes_are_counted() {
        let names: Vec<String> = (0..30).map(|number| format!("n{number}")).collect();
        assert_eq!(listed(&names), "n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, 20 more");
    }

    #[test]
    fn a_story_is_for_the_organization_of_its_app_and_one_without_for_the_operator() {
        let story = |org_id: Option<OrgId>| Story {
            request_id: REQUEST.parse().unwrap(),
            trace_id: None,
            begun_ms: 0,
            edge: None,
            app: None,
            org_id,
            method: "GET".into(),
            path: "/".into(),
            steps: Vec::new(),
            steps_left_out: 0,
            ended: skein_core::explain::Ended::default(),
        };
        let caller = |scope| Caller { scope, read_only: true, token: TokenId(Ulid(9)) };
        let [one, two] = [OrgId(Ulid(1)), OrgId(Ulid(2))];
        for org in [Some(one), Some(two), None] {
            assert!(sees(&caller(Scope::Cluster), &story(org)));
        }
        assert!(sees(&caller(Scope::Org(one)), &story(Some(one))));
        assert!(!sees(&caller(Scope::Org(one)), &story(Some(two))));
        assert!(!sees(&caller(Scope::Org(one)), &story(None)));
    }
}
