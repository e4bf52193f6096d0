//! `skein regions`: the table of regions; needs no cluster.

use skein_core::region::Regions;

use super::ctx::Ctx;
use super::out::{self, Table};

/// Runs it.
pub(crate) fn run(ctx: &Ctx) -> anyhow::Result<()> {
    let regions = Regions::default();
    if ctx.json {
        return out::json(&regions.iter().collect::<Vec<_>>());
    }
    let mut table = Table::new(&["CODE", "NAME", "GATEWAY"]);
    for region in regions.iter() {
        let gateway = if region.gateway { "yes" } else { "" };
        table.row([region.code.as_str(), &region.name, gateway]);
    }
    table.print()
}
