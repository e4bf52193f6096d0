//! `skein tokens`: API tokens.

use anyhow::bail;
use clap::Subcommand;
use skein_core::api::{CreateToken, TokenJson};
use skein_core::{OrgSlug, TokenId};

use super::ctx::Ctx;
use super::out::{self, Table};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Makes a token and shows it, once
    Create {
        /// The organization that it reaches
        #[arg(short, long, required_unless_present = "operator", conflicts_with = "operator")]
        org: Option<OrgSlug>,
        /// It reaches everything
        #[arg(long)]
        operator: bool,
        /// It may only read
        #[arg(long)]
        read_only: bool,
        /// A name to know it by
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Lists tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Makes a token invalid at once
    Revoke {
        /// Its id: the second part of the token
        id: String,
    },
}

/// Runs it.
pub(crate) async fn run(command: TokensCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match command {
        TokensCommand::Create { org, operator: _, read_only, name } => {
            let made: TokenJson =
                client.post("/skein/v1/tokens", &CreateToken { org, read_only, name }).await?;
            client.barrier().await?;
            if ctx.json {
                return out::json(&made);
            }
            out::note("it is shown this once:");
            out::data(made.token.as_deref().unwrap_or_default())
        }
        TokensCommand::List => {
            let tokens: Vec<TokenJson> = client.get("/skein/v1/tokens").await?;
            if ctx.json {
                return out::json(&tokens);
            }
            let mut table = Table::new(&["ID", "NAME", "ORG", "MAY", "CREATED"]);
            for token in tokens {
                let org = token.org.map_or_else(|| "(cluster)".to_owned(), |org| org.to_string());
                let may = if token.read_only { "read" } else { "write" };
                table.row([token.id, token.name, org, may.to_owned(), token.created_at]);
            }
            table.print()
        }
        TokensCommand::Revoke { id } => {
            let id = token_id(&id)?;
            client.delete(&format!("/skein/v1/tokens/{id}")).await?;
            client.barrier().await?;
            out::note(&format!("token {id} is revoked"));
            Ok(())
        }
    }
}

/// The id in what was given: an id, or a whole token.
fn token_id(text: &str) -> anyhow::Result<TokenId> {
    let id = text.strip_prefix("skt_").and_then(|rest| rest.split('_').next()).unwrap_or(text);
    match id.parse() {
        Ok(id) => Ok(id),
        // The text may be a secret: it is not repeated.
        Err(_) => bail!("that is no token id; `skein tokens list` shows them"),
    }
}

#[cfg(test)]
mod tests {
    use super::token_id;

    #[test]
    fn a_token_may_be_named_by_id_or_whole_and_is_never_repeated_in_an_error() {
        let id = "01JNRQ9VVKJ7HZFMJWJB3M3RYN";
        assert_eq!(token_id(id).unwrap().to_string(), id);
        assert_eq!(token_id(&format!("skt_{id}_aa")).unwrap().to_string(), id);
        assert!(!token_id("skt_secret").unwrap_err().to_string().contains("secret"));
    }
}
