use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::*;

#[expect(clippy::disallowed_methods, reason = "a test is a shell: it samples the clock")]
fn now() -> Instant {
    Instant::now()
}

enum Order {
    Panic,
    Fail,
    Ping(RpcReplyPort<()>),
}

struct Worker;

impl Actor for Worker {
    type Msg = Order;
    type State = ();
    type Arguments = ();
    async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
    async fn handle(&self, _: ActorRef<Order>, order: Order, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match order {
            Order::Panic => panic!("asked to"),
            Order::Fail => Err("asked to".into()),
            Order::Ping(reply) => {
                let _ = reply.send(());
                Ok(())
            }
        }
    }
}

/// A child whose current reference is watched.
fn child(name: &str, life: Life, give_up: GiveUp) -> (Child, watch::Receiver<Option<ActorRef<Order>>>) {
    let (sender, receiver) = watch::channel(None);
    let sender = Arc::new(sender);
    let start: Start = Arc::new(move |supervisor| {
        let sender = Arc::clone(&sender);
        Box::pin(async move {
            let (actor, _) = Actor::spawn_linked(None, Worker, (), supervisor).await?;
            let cell = actor.get_cell();
            sender.send_replace(Some(actor));
            Ok(cell)
        })
    });
    let intensity = Intensity { restarts: 2, first_wait: Duration::from_millis(1), ..Intensity::default() };
    (Child { name: name.into(), life, intensity, give_up, start }, receiver)
}

async fn next(receiver: &mut watch::Receiver<Option<ActorRef<Order>>>) -> ActorRef<Order> {
    receiver.changed().await.unwrap();
    receiver.borrow_and_update().clone().unwrap()
}

#[tokio::test]
async fn a_child_that_panics_or_fails_is_restarted_and_its_sibling_goes_on() {
    let supervisor = spawn(now, None).await.unwrap();
    let (first, mut first_ref) = child("first", Life::Permanent, GiveUp::Escalate);
    let (second, mut second_ref) = child("second", Life::Permanent, GiveUp::Escalate);
    add(&supervisor, first).await.unwrap();
    add(&supervisor, second).await.unwrap();
    let sibling = next(&mut second_ref).await;
    next(&mut first_ref).await.cast(Order::Panic).unwrap();
    next(&mut first_ref).await.cast(Order::Fail).unwrap();
    let third = next(&mut first_ref).await;
    ractor::call!(third, Order::Ping).unwrap();
    ractor::call!(sibling, Order::Ping).unwrap();
    shutdown(&supervisor, Duration::from_secs(5)).await;
    assert_eq!(third.get_status(), ractor::ActorStatus::Stopped);
}

#[tokio::test]
async fn a_child_that_keeps_failing_is_abandoned_or_ends_its_supervisor_as_told() {
    for give_up in [GiveUp::Abandon, GiveUp::Escalate] {
        let supervisor = spawn(now, None).await.unwrap();
        let (worker, mut reference) = child("worker", Life::Permanent, give_up);
        add(&supervisor, worker.clone()).await.unwrap();
        for _ in 0..3 {
            next(&mut reference).await.cast(Order::Fail).unwrap();
        }
        match give_up {
            // The name is free again once it was given up.
            GiveUp::Abandon => {
                while let Err(error) = add(&supervisor, worker.clone()).await {
                    assert_eq!(error, AddError::NameTaken("worker".into()));
                }
                shutdown(&supervisor, Duration::from_secs(5)).await;
            }
            GiveUp::Escalate => supervisor.wait(Some(Duration::from_secs(10))).await.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_transient_child_that_stops_is_forgotten() {
    let supervisor = spawn(now, None).await.unwrap();
    let (worker, mut reference) = child("worker", Life::Transient, GiveUp::Escalate);
    add(&supervisor, worker.clone()).await.unwrap();
    next(&mut reference).await.stop(None);
    while let Err(error) = add(&supervisor, worker.clone()).await {
        assert_eq!(error, AddError::NameTaken("worker".into()));
    }
    shutdown(&supervisor, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_child_that_does_not_start_is_reported_and_not_kept() {
    let supervisor = spawn(now, None).await.unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let start: Start = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(SpawnErr::StartupFailed("no".into())) })
    });
    let bad = Child {
        name: "bad".into(),
        life: Life::Permanent,
        intensity: Intensity::default(),
        give_up: GiveUp::Escalate,
        start,
    };
    assert!(matches!(add(&supervisor, bad).await, Err(AddError::Start(name, _)) if name == "bad"));
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    shutdown(&supervisor, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn children_are_stopped_last_added_first_and_nothing_is_added_after() {
    struct Noting(Arc<Mutex<Vec<&'static str>>>, &'static str);
    impl Actor for Noting {
        type Msg = ();
        type State = ();
        type Arguments = ();
        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
        async fn post_stop(&self, _: ActorRef<()>, (): &mut ()) -> Result<(), ActorProcessingErr> {
            self.0.lock().unwrap().push(self.1);
            Ok(())
        }
    }
    let noted = Arc::new(Mutex::new(Vec::new()));
    let supervisor = spawn(now, None).await.unwrap();
    for name in ["a", "b", "c"] {
        let noted = Arc::clone(&noted);
        let start: Start = Arc::new(move |supervisor| {
            let actor = Noting(Arc::clone(&noted), name);
            Box::pin(async move { Ok(Actor::spawn_linked(None, actor, (), supervisor).await?.0.get_cell()) })
        });
        let intensity = Intensity::default();
        let child =
            Child { name: name.into(), life: Life::Permanent, intensity, give_up: GiveUp::Escalate, start };
        add(&supervisor, child).await.unwrap();
    }
    shutdown(&supervisor, Duration::from_secs(5)).await;
    assert_eq!(*noted.lock().unwrap(), ["c", "b", "a"]);
    let (late, _) = child("late", Life::Permanent, GiveUp::Escalate);
    assert_eq!(add(&supervisor, late).await, Err(AddError::Closing));
}
