//! The tests' own entry to machine-init: what `skein machine-init` is in the program. Never
//! installed.

use std::process::ExitCode;

fn main() -> ExitCode {
    skein_machine::machine_init_main()
}
