//! `skein orgs`: organizations.

use anyhow::Context as _;
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
        /// Its name; the slug is made of it
        name: String,
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
            let slug = slug(&name).with_context(|| format!("make a slug of {name:?}"))?;
            let org: OrgJson = client.post("/skein/v1/orgs", &CreateOrg { slug, name }).await?;
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

/// Lower-case letters and digits of the name, with a dash for whatever stands between them.
fn slug(name: &str) -> Result<OrgSlug, skein_core::id::InvalidId> {
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").parse()
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn a_slug_is_made_of_what_a_dns_label_may_hold() {
        assert_eq!(slug("The  Corner Shop!").unwrap().as_str(), "the-corner-shop");
        assert_eq!(slug("shop").unwrap().as_str(), "shop");
        assert!(slug("!?").is_err());
    }
}
