//! Machines: their state, their drivers, machine-init, health checks.
//!
//! [`Machines`] is the handle; there is one actor per Machine. Decisions are in [`life`], [`check`]
//! and [`plan`], which are pure; [`init`] is the program that owns a Machine's processes.

pub mod autostop;
pub mod check;
pub mod init;
pub mod life;
pub mod plan;

mod actor;
mod any_certificate;
mod board;
mod checking;
mod config;
mod error;
mod health;
mod holder;
mod load;
mod log;
mod machines;
mod names;
mod ports;
mod probe;
mod run;
mod save;
mod stored;
mod strays;

pub use config::{Create, MachinesConfig, StartError};
pub use error::MachineError;
pub use init::machine_init_main;
pub use life::signal_number;
pub use log::{KEPT_LINES, LogLine};
pub use machines::Machines;
pub use stored::KEPT_EVENTS;
