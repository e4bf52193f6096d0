use proptest::prelude::*;
use skein_core::machine::MachineConfig;

use super::*;

fn settings(json: &str) -> Settings {
    let config: MachineConfig = serde_json::from_str(json).unwrap();
    Settings::of(&config).unwrap()
}

fn now() -> Instant {
    skein_cluster::clock::now()
}

/// A core at a virtual time, with what it asked for.
struct World {
    core: Core,
    now: Instant,
    states: Vec<MachineState>,
    /// The run that was launched and did not end, and whether it was killed.
    run: Option<(u64, bool)>,
    signals: Vec<i32>,
    /// Whether its process was told to wait, and not told to go on since.
    frozen: bool,
    waits_idle: bool,
    forgotten: bool,
}

impl World {
    fn new(json: &str) -> Self {
        let core = Core::created(settings(json), Desired::Started);
        Self {
            core,
            now: now(),
            states: vec![S::Created],
            run: None,
            signals: vec![],
            frozen: false,
            waits_idle: false,
            forgotten: false,
        }
    }

    fn started(json: &str) -> Self {
        let mut world = Self::new(json);
        world.feed(Input::Start(Source::User)).unwrap();
        world.feed(Input::Up(1)).unwrap();
        assert_eq!(world.core.state(), S::Started);
        world
    }

    fn feed(&mut self, input: Input) -> Result<(), Refusal> {
        if let Input::Ended(run, _, _) | Input::Lost(run) | Input::Refused(run, _) = &input
            && self.run.is_some_and(|(current, _)| current == *run)
        {
            self.run = None;
        }
        for effect in self.core.handle(self.now, input)? {
            match effect {
                Effect::Changed(happening) => {
                    let last = *self.states.last().unwrap();
                    assert!(allowed(last, happening.state), "{last} -> {}", happening.state);
                    self.states.push(happening.state);
                }
                Effect::Launch { run } => {
                    assert!(self.run.is_none(), "two runs at once");
                    assert!(!self.forgotten, "launched after its end");
                    self.run = Some((run, false));
                    (self.frozen, self.waits_idle) = (false, false);
                }
                Effect::Reclaim { run } => {
                    assert!(self.run.is_none(), "two runs at once");
                    (self.run, self.frozen) = (Some((run, false)), true);
                }
                Effect::Suspend { run } => {
                    assert_eq!((self.run, self.frozen), (Some((run, false)), false));
                    self.frozen = true;
                }
                Effect::Resume { run } => {
                    assert_eq!((self.run, self.frozen), (Some((run, false)), true));
                    self.frozen = false;
                }
                Effect::AwaitIdle { .. } => self.waits_idle = true,
                Effect::Signal { signal, .. } => {
                    assert!(!self.frozen, "it would not see the signal");
                    self.signals.push(signal);
                }
                // That ends who waits, too.
                Effect::Kill { run } => (self.run, self.frozen) = (Some((run, true)), false),
                Effect::Forget => {
                    assert!(self.run.is_none(), "forgotten while it runs");
                    self.forgotten = true;
                }
            }
        }
        assert_eq!(*self.states.last().unwrap(), self.core.state());
        Ok(())
    }

    fn tick_at_deadline(&mut self) -> Duration {
        let (at, _) = self.core.deadline().expect("something is due");
        let waited = at.saturating_duration_since(self.now);
        self.now = self.now.max(at);
        self.feed(Input::Tick).unwrap();
        waited
    }
}

/// SPEC RUN-5.
#[test]
fn a_stop_drains_then_signals_then_terminates_then_kills() {
    let mut world = World::started(r#"{"stop_config":{"signal":"SIGQUIT","timeout":"7s"}}"#);
    world.feed(Input::Stop(StopHow::default())).unwrap();
    assert_eq!((world.core.state(), world.waits_idle), (S::Stopping, true));
    assert!(world.signals.is_empty());
    assert_eq!(world.tick_at_deadline(), Duration::from_secs(7), "the drain's default is the kill timeout");
    assert_eq!(world.signals, [libc::SIGQUIT]);
    assert_eq!(world.tick_at_deadline(), Duration::from_secs(7));
    assert_eq!(world.signals, [libc::SIGQUIT, SIGTERM]);
    assert_eq!(world.tick_at_deadline(), TERM_WAIT);
    assert_eq!(world.run, Some((1, true)));
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Stopped));
}

#[test]
fn an_idle_machine_is_signalled_without_waiting_for_the_drain() {
    let mut world = World::started("{}");
    world.feed(Input::Stop(StopHow::default())).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    assert_eq!(world.signals, [libc::SIGINT]);
    world.feed(Input::Ended(1, Exit::Code(0), String::new())).unwrap();
    assert_eq!(world.core.state(), S::Stopped);
}

#[test]
fn force_leaves_out_drain_and_signals_even_in_the_middle_of_a_stop() {
    let mut world = World::started("{}");
    world.feed(Input::Stop(StopHow { force: true, ..StopHow::default() })).unwrap();
    assert_eq!((world.run, world.waits_idle), (Some((1, true)), false));
    let mut world = World::started("{}");
    world.feed(Input::Stop(StopHow::default())).unwrap();
    world.feed(Input::Destroy { force: true }).unwrap();
    assert_eq!((world.run, world.core.state()), (Some((1, true)), S::Destroying));
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    assert!(world.forgotten);
}

/// SPEC RUN-4.
#[test]
fn a_crash_is_restarted_after_a_wait_until_it_happened_too_often() {
    let mut world = World::started(r#"{"restart":{"policy":"on-failure","max_retries":2}}"#);
    for run in 1..=2 {
        world.feed(Input::Ended(run, Exit::Code(1), String::new())).unwrap();
        assert_eq!(world.core.state(), S::Restarting);
        assert!(world.core.deadline().is_some());
        world.tick_at_deadline();
        world.feed(Input::Up(run + 1)).unwrap();
    }
    world.feed(Input::Ended(3, Exit::Code(1), String::new())).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Stopped));
    assert!(world.core.error().unwrap().contains("restarted 2 times"), "{:?}", world.core.error());
    // A start by hand begins anew.
    world.feed(Input::Start(Source::User)).unwrap();
    world.feed(Input::Ended(4, Exit::Code(1), String::new())).unwrap();
    assert_eq!(world.core.state(), S::Restarting);
}

#[test]
fn a_machine_that_can_not_be_launched_fails_and_is_not_tried_again() {
    let mut world = World::new("{}");
    world.feed(Input::Start(Source::User)).unwrap();
    world.feed(Input::Refused(1, "no such file".into())).unwrap();
    assert_eq!((world.core.state(), world.core.error()), (S::LaunchFailed, Some("no such file")));
    assert!(world.core.deadline().is_none());
    let mut world = World::started("{}");
    world.feed(Input::Restart(StopHow { force: true, ..StopHow::default() })).unwrap();
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    world.feed(Input::Refused(2, "gone".into())).unwrap();
    assert_eq!(world.core.state(), S::Failed);
}

#[test]
fn closing_stops_without_forgetting_what_was_meant() {
    let mut world = World::started("{}");
    world.feed(Input::Close).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    world.feed(Input::Ended(1, Exit::Signal(2), String::new())).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Started));
    assert!(world.feed(Input::Start(Source::User)).is_err());
    // A crash that was about to be followed by a restart is not.
    let mut world = World::started("{}");
    world.feed(Input::Ended(1, Exit::Code(1), String::new())).unwrap();
    world.feed(Input::Close).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Started));
    assert!(world.core.is_at_rest());
}

#[test]
fn a_machine_that_destroys_itself_is_gone_after_its_exit() {
    let mut world = World::started(r#"{"auto_destroy":true}"#);
    world.feed(Input::Ended(1, Exit::Code(1), String::new())).unwrap();
    assert!(world.forgotten);
    assert_eq!(world.core.state(), S::Destroyed);
}

#[test]
fn words_from_a_run_that_is_over_change_nothing() {
    let mut world = World::started("{}");
    world.feed(Input::Restart(StopHow { force: true, ..StopHow::default() })).unwrap();
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    assert_eq!(world.core.state(), S::Starting);
    for stale in [Input::Up(1), Input::Ended(1, Exit::Code(0), String::new()), Input::Lost(1), Input::Idle(1)]
    {
        world.feed(stale).unwrap();
        assert_eq!(world.core.state(), S::Starting);
    }
}

fn suspended(json: &str) -> World {
    let mut world = World::started(json);
    world.feed(Input::Suspend(Source::User)).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    assert!(world.frozen);
    world.feed(Input::Suspended(1)).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Suspended, Desired::Suspended));
    assert_eq!(world.core.deadline(), None);
    world
}

/// SPEC AUTO-3, HTTP-11: as a stop it waits for what is in flight, and no longer.
#[test]
fn a_suspension_waits_for_what_is_in_flight_and_a_start_lets_it_go_on() {
    let mut world = World::started(r#"{"stop_config":{"timeout":"7s"}}"#);
    world.feed(Input::Suspend(Source::User)).unwrap();
    assert_eq!((world.core.state(), world.waits_idle, world.frozen), (S::Suspending, true, false));
    assert_eq!(world.tick_at_deadline(), Duration::from_secs(7));
    assert!(world.frozen);
    world.feed(Input::Suspended(1)).unwrap();
    world.feed(Input::Suspend(Source::User)).unwrap();
    assert_eq!(world.core.state(), S::Suspended, "once more is as well");
    world.feed(Input::Start(Source::User)).unwrap();
    assert_eq!((world.core.state(), world.frozen), (S::Starting, false));
    world.feed(Input::Up(1)).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Started, Desired::Started));
    let states = [S::Created, S::Starting, S::Started, S::Suspending, S::Suspended, S::Starting, S::Started];
    assert_eq!(world.states, states);
    assert_eq!(world.run, Some((1, false)), "the same run");
}

#[test]
fn only_what_is_started_can_be_suspended() {
    let mut world = World::new("{}");
    let refused = world.feed(Input::Suspend(Source::User)).unwrap_err();
    assert_eq!(refused.0, "unable to suspend machine from current state: 'created'");
    world.feed(Input::Start(Source::User)).unwrap();
    assert!(world.feed(Input::Suspend(Source::User)).is_err(), "it is only starting");
}

#[test]
fn a_start_in_the_middle_of_a_suspension_wins_over_it() {
    // Before its process was told to wait.
    let mut world = World::started("{}");
    world.feed(Input::Suspend(Source::User)).unwrap();
    world.feed(Input::Start(Source::User)).unwrap();
    assert_eq!((world.core.state(), world.frozen), (S::Started, false));
    world.feed(Input::Idle(1)).unwrap();
    assert!(!world.frozen, "a late word of the drain");
    // After that.
    world.feed(Input::Suspend(Source::User)).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    world.feed(Input::Start(Source::User)).unwrap();
    assert_eq!((world.core.state(), world.frozen), (S::Suspending, true));
    world.feed(Input::Suspended(1)).unwrap();
    assert_eq!((world.core.state(), world.frozen), (S::Starting, false));
    world.feed(Input::Up(1)).unwrap();
    assert_eq!(world.core.state(), S::Started);
}

/// SPEC AUTO-3: a stop or a new version discards it. `World` asserts that it goes on before a signal.
#[test]
fn a_stop_and_an_update_and_a_destruction_end_a_suspended_machine() {
    let mut world = suspended("{}");
    world.feed(Input::Stop(StopHow::default())).unwrap();
    assert_eq!((world.core.state(), world.frozen, world.signals.len()), (S::Stopping, false, 0));
    world.feed(Input::Idle(1)).unwrap();
    assert_eq!(world.signals, [libc::SIGINT]);
    world.feed(Input::Ended(1, Exit::Signal(2), String::new())).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Stopped));

    let mut world = suspended("{}");
    world.feed(Input::Update { settings: settings("{}"), launch: true }).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    world.feed(Input::Ended(1, Exit::Signal(2), String::new())).unwrap();
    assert_eq!((world.core.state(), world.run), (S::Starting, Some((2, false))));

    let mut world = suspended("{}");
    world.feed(Input::Destroy { force: false }).unwrap();
    assert_eq!(world.run, Some((1, true)), "SIGKILL ends who waits, too");
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    assert!(world.forgotten);
}

#[test]
fn what_ends_while_it_waits_is_stopped_and_not_restarted() {
    let mut world = suspended(r#"{"restart":{"policy":"always"}}"#);
    assert!(world.feed(Input::Signal(1)).is_err(), "it would not hear it");
    world.feed(Input::Ended(1, Exit::Signal(9), String::new())).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopped, Desired::Stopped));
    assert!(world.core.error().unwrap().contains("while it was suspended"), "{:?}", world.core.error());
    // Whoever wakes it in that moment gets a new process.
    let mut world = suspended("{}");
    world.feed(Input::Start(Source::User)).unwrap();
    world.feed(Input::Lost(1)).unwrap();
    assert_eq!((world.core.state(), world.run), (S::Starting, Some((2, false))));
}

#[test]
fn what_can_not_be_suspended_is_stopped() {
    let mut world = World::started("{}");
    world.feed(Input::Suspend(Source::Node)).unwrap();
    world.feed(Input::Idle(1)).unwrap();
    // Its init let it go on by itself.
    world.frozen = false;
    world.feed(Input::NotSuspended(1)).unwrap();
    assert_eq!((world.core.state(), world.core.desired()), (S::Stopping, Desired::Stopped));
    assert!(world.core.error().unwrap().contains("could not be suspended"));
}

#[test]
fn a_node_that_comes_back_finds_a_suspended_machine_or_has_it_stopped() {
    let restored = || {
        let mut world = World::new("{}");
        world.core = Core::restored(S::Suspended, settings("{}"), Desired::Suspended);
        world.states = vec![S::Suspended];
        world.feed(Input::Reclaim).unwrap();
        world
    };
    let mut found = restored();
    // Its init says that it is there, then that it waits.
    found.feed(Input::Up(1)).unwrap();
    found.feed(Input::Suspended(1)).unwrap();
    assert_eq!(found.core.state(), S::Suspended);
    found.feed(Input::Start(Source::User)).unwrap();
    found.feed(Input::Up(1)).unwrap();
    assert_eq!((found.core.state(), found.run), (S::Started, Some((1, false))));
    let mut gone = restored();
    gone.feed(Input::Lost(1)).unwrap();
    assert_eq!((gone.core.state(), gone.core.desired()), (S::Stopped, Desired::Stopped));
    // It shuts down: the process ends, and nothing starts it with the next life.
    let mut closed = restored();
    closed.feed(Input::Close).unwrap();
    closed.feed(Input::Idle(1)).unwrap();
    closed.feed(Input::Ended(1, Exit::Code(0), String::new())).unwrap();
    assert_eq!((closed.core.state(), closed.core.desired()), (S::Stopped, Desired::Suspended));
    let next = Core::restored(S::Stopped, settings("{}"), Desired::Stopped);
    assert_eq!(next.state(), S::Stopped);
}

#[derive(Debug, Clone)]
enum Step {
    Call(Input),
    /// The run comes up, ends, or is lost; the other fields are used where they fit.
    Up,
    Ends(i32),
    Lost,
    Refused,
    Idle,
    /// What its init says to an order to wait.
    Suspended(bool),
    Deadline,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let how = (any::<bool>(), proptest::option::of(0u64..10)).prop_map(|(force, timeout)| StopHow {
        force,
        timeout: timeout.map(Duration::from_secs),
        ..StopHow::default()
    });
    prop_oneof![
        Just(Step::Call(Input::Start(Source::User))),
        how.clone().prop_map(|how| Step::Call(Input::Stop(how))),
        how.prop_map(|how| Step::Call(Input::Restart(how))),
        any::<bool>().prop_map(|launch| Step::Call(Input::Update { settings: settings("{}"), launch })),
        any::<bool>().prop_map(|force| Step::Call(Input::Destroy { force })),
        Just(Step::Call(Input::Signal(1))),
        Just(Step::Call(Input::Suspend(Source::User))),
        Just(Step::Call(Input::Suspend(Source::User))),
        prop_oneof![9 => Just(true), 1 => Just(false)].prop_map(Step::Suspended),
        Just(Step::Up),
        Just(Step::Up),
        (0i32..3).prop_map(Step::Ends),
        Just(Step::Lost),
        Just(Step::Refused),
        Just(Step::Idle),
        Just(Step::Deadline),
        (0u64..20).prop_map(Step::Pass),
    ]
}

fn apply(world: &mut World, step: Step) {
    // A number no run has, when there is none: words from the past.
    let run = world.run.map_or(0, |(run, _)| run);
    let input = match step {
        Step::Call(input) => {
            // A refusal is an answer; it must leave the state as it was.
            let before = world.core.state();
            if world.feed(input).is_err() {
                assert_eq!(world.core.state(), before);
            }
            return;
        }
        Step::Up => Input::Up(run),
        Step::Ends(code) => Input::Ended(run, Exit::Code(code), String::new()),
        Step::Lost => Input::Lost(run),
        Step::Refused => Input::Refused(run, "no".into()),
        Step::Idle => Input::Idle(run),
        // An init says so once, and only to who ordered it.
        Step::Suspended(_) if !world.frozen || world.core.state() != S::Suspending => return,
        Step::Suspended(true) => Input::Suspended(run),
        Step::Suspended(false) => {
            world.frozen = false;
            Input::NotSuspended(run)
        }
        Step::Deadline => {
            if let Some((at, _)) = world.core.deadline() {
                world.now = world.now.max(at);
            }
            Input::Tick
        }
        Step::Pass(seconds) => {
            world.now += Duration::from_secs(seconds);
            Input::Tick
        }
    };
    world.feed(input).unwrap();
}

/// From anywhere: ticks pass and a kill is obeyed, nothing else helps.
fn must_come_to_rest(world: &mut World) {
    for _ in 0..20 {
        match (world.run, world.core.deadline()) {
            (Some((run, true)), _) => world.feed(Input::Ended(run, Exit::Signal(9), String::new())).unwrap(),
            (_, Some(_)) => drop(world.tick_at_deadline()),
            (None, None) => return,
            (Some(_), None) => panic!("stuck in {:?}", world.core),
        }
    }
    panic!("no rest in {:?}", world.core);
}

proptest! {
    /// SPEC RUN-1: `World` asserts the transitions and that runs never overlap.
    #[test]
    fn whatever_happens_only_documented_transitions_are_made(
        steps in proptest::collection::vec(steps(), 0..60),
    ) {
        let mut world = World::new(r#"{"restart":{"policy":"always","max_retries":3}}"#);
        for step in steps { apply(&mut world, step); }
    }

    #[test]
    fn from_wherever_it_is_a_stop_ends_in_rest(steps in proptest::collection::vec(steps(), 0..40), close: bool) {
        let mut world = World::new("{}");
        for step in steps { apply(&mut world, step); }
        let stop = if close { Input::Close } else { Input::Stop(StopHow::default()) };
        if world.feed(stop).is_ok() {
            must_come_to_rest(&mut world);
            prop_assert!(world.run.is_none());
            prop_assert!(world.core.is_at_rest());
            prop_assert!(!matches!(world.core.state(), S::Started | S::Starting | S::Stopping), "{}", world.core.state());
        }
    }

    #[test]
    fn a_machine_that_was_destroyed_by_force_is_always_forgotten(steps in proptest::collection::vec(steps(), 0..40)) {
        let mut world = World::new("{}");
        for step in steps { apply(&mut world, step); }
        if !world.forgotten {
            world.feed(Input::Destroy { force: true }).unwrap();
            must_come_to_rest(&mut world);
        }
        prop_assert!(world.forgotten);
        prop_assert_eq!(world.core.state(), S::Destroyed);
    }
}
