//! How long `skein up --detach` takes until the testbed is ready.

use tokio::time::Instant;

use crate::Args;
use crate::figure::Figure;
use crate::peer::skein::{Cluster, Cores};
use crate::report::{Better, Report};

/// Testbeds of one, three and ten nodes.
pub(super) async fn ready(args: &Args) -> anyhow::Result<Report> {
    let mut figures = Vec::new();
    for nodes in ["1", "3", "10"] {
        let (mut values, mut version, mut command) = (Vec::new(), String::new(), String::new());
        for _ in 0..args.rounds {
            let begin = Instant::now();
            let cluster = Cluster::up(&args.skein, Cores::All, &["--nodes", nodes])?;
            values.push(begin.elapsed().as_secs_f64() * 1e3);
            version.clone_from(&cluster.version);
            command.clone_from(&cluster.command);
        }
        figures.push(Figure::new(&format!("{nodes} nodes"), &version, &command, values));
    }
    let settings =
        format!("`skein up --detach` with the sample app and real distances, {} times each", args.rounds);
    Ok(Report::new("up to ready", "ms", Better::Lower, settings).with(figures, vec![]))
}
