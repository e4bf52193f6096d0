//! `skein machine-init`: the process that owns a Machine's processes (SPEC RUN-7).
//!
//! One per run of a Machine, synchronous, without a runtime. It is a session of its own and a
//! subreaper, so every process of the Machine, however it detached itself, is its descendant. It
//! holds one end of a socket pair to the node as its standard input; when the node is gone, the
//! socket says so, and nothing of the Machine survives.
//!
//! Why no parent-death signal on init itself: in portable mode there is no pid namespace that dies
//! with it, so an init killed by such a signal would leave its grandchildren behind. The end of the
//! socket can't be missed instead. The Machine's own first process has one, against init's death.

pub mod protocol;

mod app;
mod control;
mod descendants;
mod freeze;
mod run;

pub use run::machine_init_main;
