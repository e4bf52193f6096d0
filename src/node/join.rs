//! Letting new nodes in (SPEC CLU-1): the server's side of a join.

use std::net::SocketAddr;

use skein_cluster::BoxFuture;
use skein_cluster::backhaul::Joiner;
use skein_cluster::identity::{Authority, DataKey};
use skein_cluster::registry::{ProposeError, RaftRegistry};
use skein_cluster::token;
use skein_core::facts::{Command, Outcome, Refusal};
use skein_core::wire::{JoinRefusal, JoinReply, JoinRequest};

/// Admits whoever brings a valid join token: the registry spends a use of it and gives the node its
/// number, the authority signs the node's certificate.
#[derive(Clone)]
pub(super) struct Admission {
    /// Where tokens are spent and numbers given.
    pub(super) registry: RaftRegistry,
    /// What the authority's key is sealed under.
    pub(super) data_key: DataKey,
}

impl Joiner for Admission {
    fn join(
        &self,
        request: JoinRequest,
        from: SocketAddr,
    ) -> BoxFuture<'static, Result<JoinReply, JoinRefusal>> {
        let admission = self.clone();
        Box::pin(async move {
            let outcome = admission.admit(request).await;
            match &outcome {
                Ok(reply) => tracing::info!(node = %reply.name, number = %reply.number, %from, "node joined"),
                Err(JoinRefusal::Final(reason)) => tracing::warn!(%from, reason, "join refused"),
                Err(JoinRefusal::NotNow(reason)) => tracing::warn!(%from, reason, "join not decided"),
            }
            outcome
        })
    }
}

impl Admission {
    async fn admit(&self, request: JoinRequest) -> Result<JoinReply, JoinRefusal> {
        let invalid = || JoinRefusal::Final(Refusal::JoinTokenInvalid.to_string());
        let (token, secret_hash) = token::presented(&request).ok_or_else(invalid)?;
        // The key is read before anything is spent: a request that can't be signed costs no use.
        let key = Authority::request_key(&request.csr).map_err(refused)?;
        let unknown = || JoinRefusal::NotNow("this node does not know its cluster yet".to_owned());
        let settings = self.registry.state().settings().cloned().ok_or_else(unknown)?;
        let authority =
            Authority::open(&settings.authority, &settings.authority_key, &self.data_key).map_err(refused)?;
        let command = Command::AddNode {
            token,
            secret_hash,
            name: request.name,
            region: request.region,
            key,
            backhaul: request.backhaul,
        };
        let (number, name) = match self.registry.propose(command).await.map_err(not_proposed)? {
            (Outcome::Node(number, name), _) => (number, name),
            (other, _) => return Err(refused(format!("the registry answered {other:?} to a join"))),
        };
        let certificate = authority.sign(&request.csr, number).map_err(refused)?;
        let state = self.registry.state();
        let others = state.nodes().filter(|node| node.number != number);
        Ok(JoinReply {
            number,
            name,
            certificate,
            authority: settings.authority.clone(),
            data_key: self.data_key.expose().to_vec(),
            peers: others.map(|node| (node.number, node.backhaul)).collect(),
        })
    }
}

fn refused(reason: impl ToString) -> JoinRefusal {
    JoinRefusal::Final(reason.to_string())
}

/// Only the facts' own refusal is a verdict: whatever else keeps the registry from deciding passes,
/// here or at another member.
fn not_proposed(error: ProposeError) -> JoinRefusal {
    match error {
        ProposeError::Refused(refusal) => JoinRefusal::Final(refusal.to_string()),
        ProposeError::NoMajority { .. } | ProposeError::Timeout | ProposeError::Stopped(_) => {
            JoinRefusal::NotNow(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests;
