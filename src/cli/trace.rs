//! `skein trace`: one request as a tree with times.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use skein_core::explain::Wanted;
use skein_testbed::trace::{TraceJson, render};

use super::client::{CallError, segment};
use super::ctx::Ctx;
use super::out;

/// How long a trace is waited for: its spans come from several nodes.
const WAIT_MS: u64 = 5_000;

/// Which request.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// A request's id (the response's Fly-Request-Id) or a trace's id
    id: String,
}

/// Runs it.
pub(crate) async fn run(args: TraceArgs, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let id = wanted(&args.id)?;
    let path = format!("/skein/v1/testbed/traces/{}?wait_ms={WAIT_MS}", segment(&id.to_string()));
    let trace: TraceJson = match ctx.client()?.get(&path).await {
        Ok(trace) => trace,
        Err(CallError::Refused { status: 404, error, .. }) => bail!("{error}"),
        Err(error) => return Err(error.into()),
    };
    if ctx.json {
        out::json(&trace)?;
    } else {
        render(&trace).iter().try_for_each(|line| out::data(line))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The request or trace that is meant.
///
/// # Errors
/// When the text is no id.
pub(super) fn wanted(id: &str) -> anyhow::Result<Wanted> {
    let id = id.trim();
    id.parse().map_err(|_| {
        let id: String = id.chars().take(80).collect();
        anyhow::anyhow!(
            "{id:?} is neither a request id, like 01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad (a response's Fly-Request-Id), \
             nor a trace id of 32 hexadecimal digits"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_id_is_refused_before_anything_is_asked() {
        for bad in ["", "hello", "0af7651916cd43dd8448eb211c80319", "0AF7651916CD43DD8448EB211C80319C"] {
            let args = TraceArgs { id: bad.into() };
            let error = run(args, &Ctx::default()).await.unwrap_err().to_string();
            assert!(error.contains("neither a request id"), "{bad}: {error}");
        }
        assert!(wanted(" 0af7651916cd43dd8448eb211c80319c\n").is_ok());
        let long = wanted(&"a".repeat(10_000)).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }
}
