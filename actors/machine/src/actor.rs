//! The actor of one Machine: a mailbox around [`Core`]. It decides nothing; it carries out effects,
//! keeps the store and what others see in step, and never waits in a handler.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use skein_cluster::clock;
use skein_core::MachineId;
use skein_core::machine::{MachineConfig, MachineState};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::board::Entry;
use crate::check::Status;
use crate::error::MachineError;
use crate::holder::Fate;
use crate::life::{Core, Desired, Effect, Input, Source, StopHow};
use crate::machines::Shared;
use crate::plan::{self, Plan};
use crate::run::{Begin, Run};
use crate::save::Saver;
use crate::stored::Stored;

mod show;

/// What a Machine's actor is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A call of the API; answered once its outcome is durable.
    Call(Call, RpcReplyPort<Result<MachineState, MachineError>>),
    /// The node shuts down; answered once no process is left.
    Close(RpcReplyPort<()>),
    /// The node can't wait longer: everything is killed.
    End,
    /// What became of a run.
    Run(u64, Fate),
    /// Nothing is in flight at a run.
    Idle(u64),
    /// A run accepts connections, or does not after its time for that, with the reason.
    Listens(u64, Result<(), String>),
    /// A check of a run stands otherwise than before.
    Check(u64, usize, Status, String),
    /// A write to the store ended.
    Saved(Result<(), String>),
    /// The core's deadline may be over.
    Tick,
}

/// A call of the API.
#[derive(Debug)]
pub(crate) enum Call {
    Start,
    Stop(StopHow),
    Restart(StopHow),
    Update { config: Box<MachineConfig>, launch: bool, current: Option<String> },
    Destroy { force: bool },
    Suspend(Source),
    Signal(i32),
    Cordon(bool),
}

/// What a Machine's beginning is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    Start,
    Resume,
}

/// The actor; its argument names the Machine.
pub(crate) struct MachineActor(pub(crate) Arc<Shared>);

pub(crate) struct State {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    stored: Stored,
    core: Core,
    plan: Plan,
    run: Option<Run>,
    /// When it was told to start or to go on, until it is started and healthy.
    beginning: Option<(Beginning, Instant)>,
    saver: Saver,
    closers: Vec<RpcReplyPort<()>>,
    timer: Option<AbortHandle>,
    tasks: TaskTracker,
    token: CancellationToken,
    /// Ends all tasks however the actor ends; with them the socket to init, and with that the process.
    _guard: DropGuard,
}

impl Actor for MachineActor {
    type Msg = Message;
    type State = State;
    type Arguments = MachineId;

    async fn pre_start(&self, _: ActorRef<Message>, id: MachineId) -> Result<State, ActorProcessingErr> {
        let shared = Arc::clone(&self.0);
        let entry = shared.board.entry(id).ok_or("the board does not know the Machine")?;
        let stored = entry.view.borrow().stored.clone();
        let (plan, settings) = plan::validate(&stored.config)?;
        // Without a process there is nothing to wait: the next start is a cold one.
        let discarded = stored.desired == Desired::Suspended && stored.adopt.is_none();
        let desired = if discarded { Desired::Stopped } else { stored.desired };
        let core = if stored.state == MachineState::Created {
            Core::created(settings, desired)
        } else {
            Core::restored(stored.state, settings, desired)
        };
        let token = CancellationToken::new();
        let mut state = State {
            _guard: token.clone().drop_guard(),
            token,
            shared,
            entry,
            stored,
            core,
            plan,
            run: None,
            beginning: None,
            saver: Saver::default(),
            closers: Vec::new(),
            timer: None,
            tasks: TaskTracker::new(),
        };
        state.stored.state = state.core.state();
        // Whoever waited for the start sees the Machine.
        state.publish();
        Ok(state)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match state.core.desired() {
            Desired::Suspended => state.feed(&myself, Input::Reclaim)?,
            Desired::Started => {
                let source = if state.stored.events.is_empty() { Source::User } else { Source::Node };
                state.feed(&myself, Input::Start(source))?;
            }
            Desired::Destroyed => state.feed(&myself, Input::Destroy { force: true })?,
            Desired::Stopped => {}
        }
        if matches!(state.core.desired(), Desired::Stopped | Desired::Destroyed)
            && let Some(left) = state.stored.adopt.take()
        {
            state.saver.dirty();
            state.spawn(Box::pin(async move {
                // Nobody there is what is wanted; another failure leaves it to its grace to end.
                if let Err(error) = crate::holder::end(&left.path, left.secret).await
                    && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                {
                    let path = left.path.display();
                    tracing::warn!(%path, %error, "what a former life of this node left could not be ended");
                }
            }));
        }
        state.settle(&myself);
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.token.cancel();
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Call(call, reply) => state.call(&myself, call, reply),
            Message::Close(reply) => {
                // Refused only by a Machine that is being destroyed, which ends by itself.
                let _ = state.feed(&myself, Input::Close);
                state.closers.push(reply);
            }
            Message::End => {
                if let Some(run) = &state.run {
                    run.kill();
                }
            }
            Message::Run(run, fate) => state.fate(&myself, run, fate),
            Message::Idle(run) => state.own(&myself, Input::Idle(run)),
            Message::Tick => {
                state.own(&myself, Input::Tick);
                if state.tell_health(&myself) {
                    state.publish();
                }
            }
            Message::Listens(run, heard) => state.listens(&myself, run, heard),
            Message::Check(run, index, status, output) => state.checked(&myself, run, index, status, output),
            Message::Saved(result) => state.saved(&myself, result),
        }
        state.settle(&myself);
        Ok(())
    }
}

impl State {
    fn call(
        &mut self,
        myself: &ActorRef<Message>,
        call: Call,
        reply: RpcReplyPort<Result<MachineState, MachineError>>,
    ) {
        let previous = self.core.state();
        match self.take(myself, call) {
            Ok(()) => {
                self.saver.dirty();
                self.saver.answer_once_saved(reply, previous);
            }
            // A caller that is gone needs no answer.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn take(&mut self, myself: &ActorRef<Message>, call: Call) -> Result<(), MachineError> {
        let refused = |refusal: crate::life::Refusal| MachineError::Precondition(refusal.0);
        match call {
            Call::Start => self.feed(myself, Input::Start(Source::User)).map_err(refused),
            Call::Stop(how) => self.feed(myself, Input::Stop(how)).map_err(refused),
            Call::Restart(how) => self.feed(myself, Input::Restart(how)).map_err(refused),
            Call::Destroy { force } => self.feed(myself, Input::Destroy { force }).map_err(refused),
            Call::Suspend(source) => self.feed(myself, Input::Suspend(source)).map_err(refused),
            Call::Signal(signal) => self.feed(myself, Input::Signal(signal)).map_err(refused),
            Call::Cordon(cordoned) => {
                if self.stored.cordoned != cordoned {
                    self.stored.cordoned = cordoned;
                    self.stored.changed_ms = clock::unix_ms();
                    self.note(if cordoned { "cordon" } else { "uncordon" }, Source::User, None);
                    self.publish();
                }
                Ok(())
            }
            Call::Update { config, launch, current } => self.update(myself, *config, launch, current),
        }
    }

    fn update(
        &mut self,
        myself: &ActorRef<Message>,
        config: MachineConfig,
        launch: bool,
        current: Option<String>,
    ) -> Result<(), MachineError> {
        if let Some(asked) = current.filter(|asked| *asked != self.stored.version.to_string()) {
            return Err(MachineError::Version { current: self.stored.version.to_string(), asked });
        }
        let (plan, settings) = plan::validate(&config)?;
        let (json, hash) = crate::stored::canonical(&config)
            .map_err(|error| MachineError::Invalid(format!("it can't be written as JSON: {error}")))?;
        let (old, old_plan) = (self.stored.clone(), self.plan.clone());
        let now = clock::unix_ms();
        self.stored.config = Arc::new(config);
        (self.stored.config_json, self.stored.hash) = (json, hash);
        self.stored.version = self.shared.version();
        self.stored.updated_ms = now;
        self.plan = plan;
        if let Err(refusal) = self.feed(myself, Input::Update { settings, launch }) {
            (self.stored, self.plan) = (old, old_plan);
            return Err(MachineError::Precondition(refusal.0));
        }
        self.publish();
        Ok(())
    }

    /// An input that the core never refuses.
    fn own(&mut self, myself: &ActorRef<Message>, input: Input) {
        if let Err(refusal) = self.feed(myself, input) {
            tracing::error!(machine = %self.stored.id, %refusal, "the core refused what happened");
        }
    }

    /// Gives the core an input and carries out its effects.
    pub(crate) fn feed(
        &mut self,
        myself: &ActorRef<Message>,
        input: Input,
    ) -> Result<(), crate::life::Refusal> {
        let desired = self.core.desired();
        let effects = self.core.handle(clock::now(), input)?;
        if self.core.desired() != desired {
            self.saver.dirty();
        }
        self.carry_out(myself, effects);
        self.arm(myself);
        Ok(())
    }

    fn carry_out(&mut self, myself: &ActorRef<Message>, effects: Vec<Effect>) {
        let (changes, others): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Changed(_)));
        let changed = !changes.is_empty();
        for change in changes {
            let Effect::Changed(happening) = change else { continue };
            self.stored.state = happening.state;
            self.stored.changed_ms = clock::unix_ms();
            self.note(happening.kind, happening.source, happening.request);
            tracing::info!(
                machine = %self.stored.id, app = %self.stored.app_name, event = happening.kind,
                state = %happening.state, error = self.core.error(), "a Machine changed"
            );
        }
        if changed {
            // Out of routing before anything is done to the process (SPEC RUN-5).
            self.publish();
        }
        for effect in others {
            match effect {
                Effect::Launch { run } => {
                    // A run of this life is noted while it lasts; what is noted now is from a former one.
                    let left = self.stored.adopt.take();
                    // What is taken over was not started by this life: its time says nothing of a start.
                    self.beginning = left.is_none().then(|| (Beginning::Start, clock::now()));
                    self.launch(myself, run, left.map_or(Begin::Launch, Begin::Adopt));
                }
                Effect::Reclaim { run } => match self.stored.adopt.take() {
                    Some(left) => self.launch(myself, run, Begin::Reclaim(left)),
                    None => drop(myself.cast(Message::Run(run, Fate::Lost("nothing was left".into())))),
                },
                Effect::Suspend { run } => self.suspend(myself, run),
                Effect::Resume { run } => self.resume(myself, run),
                Effect::AwaitIdle { run } => self.await_idle(myself, run),
                Effect::Signal { run, signal } => self.signal(myself, run, signal),
                Effect::Kill { run } => self.kill(myself, run),
                Effect::Forget => {
                    self.run = None;
                    self.saver.forget();
                }
                Effect::Changed(_) => {}
            }
        }
    }

    fn launch(&mut self, myself: &ActorRef<Message>, number: u64, begin: Begin) {
        let tell = {
            let myself = myself.clone();
            move |message| drop(myself.cast(message))
        };
        let found = match &begin {
            Begin::Launch => None,
            Begin::Adopt(_) => Some(Run::resume as fn(&Run) -> bool),
            Begin::Reclaim(_) => Some(Run::suspend as fn(&Run) -> bool),
        };
        let run = Run::start(&self.shared, &self.stored, &self.plan, &self.entry.log, number, begin, tell);
        match run {
            Ok((run, tasks)) => {
                if let Some(order) = found {
                    // It may have been left in the middle of a change between the two.
                    order(&run);
                }
                self.stored.adopt = run.adoptable.clone();
                self.run = Some(run);
                if self.stored.adopt.is_some() {
                    // A node that dies right after the start has to know where to find it.
                    self.saver.hold(tasks);
                } else {
                    tasks.into_iter().for_each(|task| self.spawn(task));
                }
                self.saver.dirty();
                self.publish();
            }
            Err(error) => drop(myself.cast(Message::Run(number, Fate::Refused(error)))),
        }
    }

    fn await_idle(&self, myself: &ActorRef<Message>, number: u64) {
        let slots = self.slots();
        let myself = myself.clone();
        self.spawn(Box::pin(async move {
            crate::run::idle(&slots).await;
            drop(myself.cast(Message::Idle(number)));
        }));
    }

    fn signal(&mut self, myself: &ActorRef<Message>, number: u64, signal: i32) {
        let Some(run) = self.run.as_ref().filter(|run| run.number == number) else { return };
        if !run.signal(signal) {
            // An external Machine has no process: it is stopped once nothing is sent to it.
            self.external_ended(myself, number);
        }
    }

    fn kill(&mut self, myself: &ActorRef<Message>, number: u64) {
        let Some(run) = self.run.as_ref().filter(|run| run.number == number) else { return };
        if !run.kill() {
            self.external_ended(myself, number);
        }
    }

    fn suspend(&mut self, myself: &ActorRef<Message>, number: u64) {
        let Some(run) = self.run.as_ref().filter(|run| run.number == number) else { return };
        if !run.suspend() {
            // An external Machine has no process: it is suspended once nothing is sent to it.
            drop(myself.cast(Message::Run(number, Fate::Suspended)));
        }
    }

    fn resume(&mut self, myself: &ActorRef<Message>, number: u64) {
        let Some(run) = self.run.as_ref().filter(|run| run.number == number) else { return };
        if self.core.state() == MachineState::Starting {
            self.beginning = Some((Beginning::Resume, clock::now()));
        }
        if !run.resume() {
            drop(myself.cast(Message::Run(number, Fate::Up)));
        }
    }

    fn external_ended(&self, myself: &ActorRef<Message>, number: u64) {
        // A signal alone stops nothing that has no process; a stop that is under way does.
        if self.core.is_stopping() {
            let exit = skein_core::restart::Exit::Code(0);
            drop(myself.cast(Message::Run(number, Fate::Ended(exit, String::new()))));
        }
    }

    fn fate(&mut self, myself: &ActorRef<Message>, run: u64, fate: Fate) {
        let input = match fate {
            Fate::Up => {
                if let Some(run) = self.run.as_ref().filter(|current| current.number == run) {
                    run.up();
                }
                Input::Up(run)
            }
            Fate::Suspended => Input::Suspended(run),
            Fate::NotSuspended => Input::NotSuspended(run),
            Fate::Refused(error) => Input::Refused(run, error),
            Fate::Ended(exit, wrote) => Input::Ended(run, exit, wrote),
            Fate::Lost(error) => {
                tracing::warn!(machine = %self.stored.id, error, "a run was lost");
                Input::Lost(run)
            }
        };
        let over = matches!(input, Input::Refused(..) | Input::Ended(..) | Input::Lost(_));
        if over && self.run.as_ref().is_some_and(|current| current.number == run) {
            self.run = None;
            self.stored.adopt = None;
        }
        self.own(myself, input);
    }

    fn listens(&mut self, myself: &ActorRef<Message>, number: u64, heard: Result<(), String>) {
        let Some(run) = self.run.as_ref().filter(|run| run.number == number) else { return };
        run.open();
        if heard.is_err() {
            // That was no successful start.
            self.beginning = None;
        }
        self.own(myself, Input::Listens(number, heard));
        self.tell_health(myself);
        self.publish();
    }

    fn checked(
        &mut self,
        myself: &ActorRef<Message>,
        number: u64,
        index: usize,
        status: Status,
        output: String,
    ) {
        let Some(run) = self.run.as_mut().filter(|run| run.number == number) else { return };
        let was = run.healthy();
        run.checked(index, status, output);
        if run.healthy() != was {
            tracing::info!(machine = %self.stored.id, healthy = !was, "a Machine's health changed");
        }
        self.tell_health(myself);
        self.publish();
    }

    /// Whether others are told something else of the Machine's health with what is published next.
    fn tell_health(&mut self, myself: &ActorRef<Message>) -> bool {
        let otherwise = self.run.as_mut().is_some_and(Run::says_otherwise);
        if otherwise {
            self.stored.changed_ms = clock::unix_ms();
        }
        self.arm(myself);
        otherwise
    }

    fn saved(&mut self, myself: &ActorRef<Message>, result: Result<(), String>) {
        if let Err(error) = &result {
            tracing::error!(machine = %self.stored.id, error, "a Machine could not be stored");
        }
        if self.saver.saved(result) {
            myself.stop(None);
        }
        self.saver.released().into_iter().for_each(|task| self.spawn(task));
    }

    /// After each message: writes what changed and answers who waits for the end.
    fn settle(&mut self, myself: &ActorRef<Message>) {
        self.stored.desired = self.core.desired();
        self.stored.state = self.core.state();
        if let Some(save) = self.saver.next(&self.shared.store, &self.stored) {
            let myself = myself.clone();
            // Not under the token: a write that began is told about even while the actor ends.
            self.tasks.spawn(async move { drop(myself.cast(Message::Saved(save.await))) });
        }
        if self.core.is_at_rest() && self.saver.is_idle() {
            for closer in self.closers.drain(..) {
                let _ = closer.send(());
            }
        }
    }

    fn arm(&mut self, myself: &ActorRef<Message>) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let health = self.run.as_ref().and_then(Run::look_at);
        let Some(at) = self.core.deadline().map(|(at, _)| at).into_iter().chain(health).min() else { return };
        let myself = myself.clone();
        let task =
            self.tasks.spawn(wait_and(self.token.clone(), at, move || drop(myself.cast(Message::Tick))));
        self.timer = Some(task.abort_handle());
    }

    fn spawn(&self, task: crate::run::Task) {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = task => {}
            }
        });
    }
}

async fn wait_and(token: CancellationToken, at: Instant, then: impl FnOnce()) {
    tokio::select! {
        biased;
        () = token.cancelled() => {}
        () = tokio::time::sleep_until(at.into()) => then(),
    }
}
