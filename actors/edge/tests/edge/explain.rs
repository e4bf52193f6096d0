//! What an edge keeps of its decisions for those who ask (SPEC OBS-5).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use skein_core::RequestId;
use skein_core::balance::{PassedOver, PickReason};
use skein_core::code::ErrorCode;
use skein_core::explain::{Step, Story, Verdict, Wanted, Worse};
use skein_core::machine::MachineState;
use skein_core::retry::Failure;
use skein_core::wire::RefuseReason;
use skein_edge::Edge;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing_subscriber::layer::SubscriberExt;

use crate::backend::{Got, Seen, Server, get, nowhere, replay, request, send, text};
use crate::world::{HTTP, World, eventually};

/// The story of a request that was answered.
pub async fn story(edge: &Edge, request_id: &str) -> Story {
    let wanted: Wanted = request_id.parse().unwrap();
    eventually("its story is kept", || edge.explain(wanted).is_some()).await;
    edge.explain(wanted).unwrap()
}

async fn story_of(edge: &Edge, got: &Got) -> Story {
    story(edge, got.header("fly-request-id").unwrap()).await
}

/// What became of each Machine of a decision, by the last digit of its id.
fn verdicts(step: &Step) -> Vec<(u64, Verdict)> {
    let Step::Decided(decided) = step else { panic!("a decision was expected: {step:?}") };
    decided.machines.iter().map(|judged| (judged.machine.bits(), judged.verdict)).collect()
}

#[tokio::test]
async fn obs_5_a_request_that_was_tried_again_names_who_did_not_take_it_and_why() {
    let server = Server::answering(|_| text(200, "done")).await;
    let mut world = World::new(&["iad", "lhr", "nrt"]);
    let app = world.app("hello");
    let stopped = world.machine(0, app, server.address, HTTP);
    let refusing = world.machine(1, app, nowhere().await, HTTP);
    let answering = world.machine(2, app, server.address, HTTP);
    let cordoned = world.machine(0, app, server.address, HTTP);
    world.change(cordoned, |machine| machine.cordoned = true);
    world.publish();
    world.change(stopped, |machine| machine.state = MachineState::Stopped);
    world.publish_local();
    let edge = world.shared(0, 80).await;

    let got = get(edge, "/path?secret=1").await;
    assert_eq!(got.status, 200);
    let told = story_of(&world.nodes[0].edge, &got).await;
    assert_eq!(told.edge.as_ref().map(|edge| edge.as_str()), Some("iad-1"));
    assert_eq!(told.app.as_ref().map(|app| app.as_str()), Some("hello"));
    assert_eq!((&*told.method, &*told.path), ("GET", "/path"));
    assert_eq!(
        (told.ended.status, told.ended.machine, told.ended.complete),
        (Some(200), Some(answering), true)
    );
    assert_eq!(told.ended.sent, 4);

    let [first, refused, second, failed, third] = told.steps.as_slice() else { panic!("{told:#?}") };
    let passed_over = Verdict::PassedOver(PassedOver::Cordoned);
    let (further, tried) = (Verdict::Worse(Worse::Further), Verdict::PassedOver(PassedOver::Tried));
    assert_eq!(verdicts(first), [(1, Verdict::Chosen), (2, further), (3, further), (4, passed_over)]);
    let Step::Failed(refused) = refused else { panic!("{refused:?}") };
    assert_eq!((refused.machine, refused.failure), (stopped, Failure::Refused(RefuseReason::Stopped)));
    assert_eq!(verdicts(second), [(2, Verdict::Chosen), (3, further), (1, tried), (4, passed_over)]);
    let Step::Failed(failed) = failed else { panic!("{failed:?}") };
    assert_eq!((failed.machine, failed.region.as_str(), failed.code), (refusing, "lhr", ErrorCode::PC01));
    assert_eq!(verdicts(third), [(3, Verdict::Chosen), (1, tried), (2, tried), (4, passed_over)]);
    let Step::Decided(third) = third else { panic!("{third:?}") };
    assert_eq!((third.reason, third.candidates), (Some(PickReason::Only), 1));
    assert!(
        refused.at_us <= failed.at_us
            && failed.at_us <= third.at_us
            && u64::from(third.at_us) <= told.ended.took_us
    );
}

#[tokio::test]
async fn obs_5_a_replayed_request_names_who_asked_for_it_and_where_it_went() {
    let near = Server::answering(|seen: &Seen| match seen.target.as_str() {
        "/bad" => replay("region=nonsense"),
        _ => replay("region=lhr;state=kept-to-itself"),
    })
    .await;
    let far = Server::answering(|_| text(200, "far")).await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    let source = world.machine(0, app, near.address, HTTP);
    let target = world.machine(1, app, far.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;

    let got = send(edge, request("POST", "/", "body")).await;
    assert_eq!(got.text(), "far");
    let told = story_of(&world.nodes[0].edge, &got).await;
    let [first, replayed, second] = told.steps.as_slice() else { panic!("{told:#?}") };
    assert_eq!(verdicts(first), [(1, Verdict::Chosen), (2, Verdict::Worse(Worse::Further))]);
    let Step::Replayed(replayed) = replayed else { panic!("{replayed:?}") };
    assert_eq!((replayed.machine, replayed.hop, &*replayed.to), (source, 1, r#"region="lhr""#));
    assert_eq!(verdicts(second), [(2, Verdict::Chosen), (1, Verdict::Worse(Worse::Elsewhere))]);
    assert_eq!((told.ended.status, told.ended.machine), (Some(200), Some(target)));
    let json = serde_json::to_string(&told).unwrap();
    assert!(!json.contains("kept-to-itself"), "{json}");

    let got = get(edge, "/bad").await;
    let told = story_of(&world.nodes[0].edge, &got).await;
    let Some(Step::NotReplayed(not)) = told.steps.last() else { panic!("{told:#?}") };
    assert_eq!((not.machine, not.code), (source, ErrorCode::PA03));
    assert!(not.why.as_deref().unwrap().contains("nonsense"), "{not:?}");
    assert_eq!(told.ended.code.as_deref(), Some("PA03"));
}

#[tokio::test]
async fn obs_5_only_the_edge_that_met_a_request_knows_it() {
    let server = Server::answering(|_| text(200, "done")).await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(1, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let got = get(edge, "/").await;
    let told = story_of(&world.nodes[0].edge, &got).await;
    assert_eq!(told.trace_id, None, "it was not traced");
    let wanted = Wanted::Request(told.request_id);
    assert_eq!(world.nodes[1].edge.explain(wanted), None, "the worker was not asked to decide");
    let never = Wanted::Request(RequestId { ulid: ulid::Ulid(1), ..told.request_id });
    assert_eq!(world.nodes[0].edge.explain(never), None);
}

#[tokio::test]
async fn obs_5_what_failed_is_kept_longer_than_what_went_well() {
    let server = Server::answering(|_| text(200, "done")).await;
    let mut world = World::with(&["iad"], |config| config.explained = 4);
    let (app, empty) = (world.app("hello"), world.app("empty"));
    world.machine(0, app, server.address, HTTP);
    let stopped = world.machine(0, empty, server.address, HTTP);
    world.change(stopped, |machine| machine.state = MachineState::Stopped);
    world.publish();
    let edge = world.shared(0, 80).await;
    assert_eq!(world.nodes[0].edge.explained(), (4, 1));
    let mut asked = request("GET", "/", "");
    asked.headers_mut().insert("host", "empty.localhost".parse().unwrap());
    let failed = send(edge, asked).await;
    let told = story_of(&world.nodes[0].edge, &failed).await;
    let not_started = Verdict::PassedOver(PassedOver::NotStarted(MachineState::Stopped));
    assert_eq!(verdicts(&told.steps[0]), [(2, not_started)]);
    assert_eq!((told.ended.code.as_deref(), told.ended.status), (Some("PR01"), Some(503)));
    let mut well = Vec::new();
    for _ in 0..5 {
        let got = get(edge, "/").await;
        story_of(&world.nodes[0].edge, &got).await;
        well.push(got.header("fly-request-id").unwrap().parse::<Wanted>().unwrap());
    }
    let known = |wanted: &Wanted| world.nodes[0].edge.explain(*wanted).is_some();
    assert_eq!(well.iter().map(known).collect::<Vec<_>>(), [false, true, true, true, true]);
    story_of(&world.nodes[0].edge, &failed).await;
}

#[tokio::test]
async fn obs_5_a_client_that_goes_away_leaves_a_story_too() {
    let (met, mut id) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(move |request| {
        met.send(request.headers()["fly-request-id"].to_str().unwrap().to_owned()).unwrap();
        Box::pin(std::future::pending())
    })
    .await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    let machine = world.machine(0, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let id = {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(b"GET /gone HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
        // The connection is closed once the Machine has the request.
        id.recv().await.unwrap()
    };
    let told = story(&world.nodes[0].edge, &id).await;
    assert_eq!((told.ended.status, told.ended.machine, &*told.path), (None, Some(machine), "/gone"));
}

/// What the workers wrote of a request that they refused: Machine and reason.
#[derive(Clone, Default)]
struct Refusals(Arc<Mutex<Vec<(String, String, String)>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Refusals {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        #[derive(Default)]
        struct Fields(BTreeMap<&'static str, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
            }
        }
        if event.metadata().target() == "skein::refused" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let mut of = |name| fields.0.remove(name).unwrap();
            self.0.lock().unwrap().push((of("request"), of("machine"), of("reason")));
        }
    }
}

/// The story names the Machines that refused the request, and their workers' logs say the same.
#[tokio::test]
async fn obs_5_a_story_agrees_with_the_logs_of_the_workers() {
    let logged = Refusals::default();
    let subscriber = tracing_subscriber::registry().with(logged.clone());
    let _default = tracing::subscriber::set_default(subscriber);
    let server = Server::answering(|_| text(200, "done")).await;
    let mut world = World::new(&["iad", "lhr", "nrt"]);
    let app = world.app("hello");
    let stopped = world.machine(0, app, server.address, HTTP);
    let cordoned = world.machine(1, app, server.address, HTTP);
    world.machine(2, app, server.address, HTTP);
    world.publish();
    world.change(stopped, |machine| machine.state = MachineState::Stopped);
    world.change(cordoned, |machine| machine.cordoned = true);
    world.publish_local();
    let got = get(world.shared(0, 80).await, "/").await;
    assert_eq!(got.status, 200);
    let told = story_of(&world.nodes[0].edge, &got).await;
    let refused = |step: &Step| match step {
        Step::Failed(failed) => match failed.failure {
            Failure::Refused(reason) => Some((failed.machine.to_string(), format!("{reason:?}"))),
            Failure::Unreachable | Failure::Broken { .. } => None,
        },
        Step::Decided(_) | Step::Queued(_) | Step::Relayed(_) | Step::Replayed(_) | Step::NotReplayed(_) => {
            None
        }
    };
    let told: Vec<_> = told.steps.iter().filter_map(refused).collect();
    let id = got.header("fly-request-id").unwrap();
    let logged = logged.0.lock().unwrap().clone();
    assert!(logged.iter().all(|(request, ..)| request == id), "{logged:?}");
    let logged: Vec<_> = logged.into_iter().map(|(_, machine, reason)| (machine, reason)).collect();
    assert_eq!(logged, told);
    let expected = [(stopped.to_string(), "Stopped"), (cordoned.to_string(), "Cordoned")];
    assert_eq!(told, expected.map(|(machine, reason)| (machine, reason.to_owned())));
}
