//! `skein explain`: what was decided for one request, and why.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use skein_core::explain::{Story, lines};

use super::client::{CallError, segment};
use super::ctx::Ctx;
use super::{out, trace};

/// How long a story is waited for: it is told once its request has ended.
const WAIT_MS: u64 = 5_000;

/// Which request.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A request's id (the response's Fly-Request-Id) or, if it was traced, its trace's id
    id: String,
}

/// Runs it.
pub(crate) async fn run(args: ExplainArgs, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let wanted = trace::wanted(&args.id)?;
    let path = format!("/skein/v1/explain/{}?wait_ms={WAIT_MS}", segment(&wanted.to_string()));
    let story: Story = match ctx.client()?.get(&path).await {
        Ok(story) => story,
        Err(CallError::Refused { status: 404 | 503, error, .. }) => bail!("{error}"),
        Err(error) => return Err(error.into()),
    };
    if ctx.json {
        out::json(&story)?;
    } else {
        lines(&story, &crate::api::rfc3339(story.begun_ms)).iter().try_for_each(|line| out::data(line))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_id_is_refused_before_anything_is_asked() {
        for bad in ["", "hello", "01JNRQ9VVKJ7HZFMJWJB3M3RYN", "01JNRQ9VVKJ7HZFMJWJB3M3RYN-"] {
            let error = run(ExplainArgs { id: bad.into() }, &Ctx::default()).await.unwrap_err().to_string();
            assert!(error.contains("neither a request id"), "{bad}: {error}");
        }
    }
}
