//! `skein orgs`: organizations.

use clap::Subcommand;
use skein_core::OrgSlug;
use skein_core::api::{CreateOrg, OrgJson};

use super::ctx::Ctx;
use super::out::{self, Table};

/// What to do with organizations.
#[derive(Debug, Subcommand)]
pub(crate) enum OrgsCommand {
    /// Makes an organization
    Create {
        /// Its name: lower-case letters, digits and dashes
        name: OrgSlug,
    },
    /// Lists organizations
    #[command(visible_alias = "ls")]
    List,
}

/// Runs it.
pub(crate) async fn run(command: OrgsCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match command {
        OrgsCommand::Create { name } => {
            let body = CreateOrg { name: name.to_string(), slug: name };
            let org: OrgJson = client.post("/skein/v1/orgs", &body).await?;
            client.barrier().await?;
            if ctx.json {
                return out::json(&org);
            }
            out::note(&format!("organization {0} is made; `skein apps create NAME -o {0}`", org.slug));
            Ok(())
        }
        OrgsCommand::List => {
            let orgs: Vec<OrgJson> = client.get("/skein/v1/orgs").await?;
            if ctx.json {
                return out::json(&orgs);
            }
            let mut table = Table::new(&["SLUG", "NAME", "ID"]);
            for org in orgs {
                table.row([org.slug.to_string(), org.name, org.id]);
            }
            table.print()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        _command: OrgsCommand,
    }

    #[test]
    fn a_name_that_would_have_to_be_changed_is_refused() {
        assert!(Line::try_parse_from(["orgs", "create", "corner-shop"]).is_ok());
        for bad in ["Bad Name!", "Shop", "", "!?"] {
            let error = Line::try_parse_from(["orgs", "create", bad]).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
