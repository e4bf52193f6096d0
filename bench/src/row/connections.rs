//! Memory of connections that wait for their next request.

use crate::Args;
use crate::app::App;
use crate::load::Load;
use crate::peer::{self, ONE_HOP};
use crate::report::{Better, Report};

/// Connections that were used once and are kept; the kernel's memory for them is not counted.
pub(super) async fn idle(args: &Args) -> anyhow::Result<Report> {
    let app = App::start().await?;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    anyhow::ensure!(
        limit > args.idle as u64 + 500,
        "{limit} open files are too few; see `ulimit -n` and --idle"
    );
    let (programs, skipped) = peer::start(ONE_HOP, args, app.address).await?;
    let mut figures = Vec::new();
    for program in &programs {
        program.ready("/").await?;
        let before = program.memory()?.pss;
        let load = Load { address: program.address, path: "/", connections: args.idle };
        let mut clients = load.connect().await?;
        let each = program.memory()?.pss.saturating_sub(before) as f64 / args.idle as f64;
        // All of them are open still, and serve.
        for client in &mut clients {
            client.ask().await?;
        }
        figures.push(program.figure(vec![each / 1024.0]));
    }
    let settings = format!(
        "PSS of {} connections that were used once, without what the kernel holds; up to {limit} open files",
        args.idle
    );
    Ok(Report::new("idle connections", "KiB each", Better::Lower, settings).with(figures, skipped).compared())
}
