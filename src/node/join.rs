//! Letting new nodes in (SPEC CLU-1): the server's side of a join.

use std::net::SocketAddr;

use skein_cluster::BoxFuture;
use skein_cluster::backhaul::Joiner;
use skein_cluster::identity::{Authority, DataKey};
use skein_cluster::registry::Registry;
use skein_cluster::token;
use skein_core::facts::{Command, Outcome};
use skein_core::wire::{JoinReply, JoinRequest};

/// Admits whoever brings a valid join token: the registry spends a use of it and gives the node its
/// number, the authority signs the node's certificate.
#[derive(Clone)]
pub(super) struct Admission {
    /// Where tokens are spent and numbers given.
    pub(super) registry: Registry,
    /// What the authority's key is sealed under.
    pub(super) data_key: DataKey,
}

impl Joiner for Admission {
    fn join(&self, request: JoinRequest, from: SocketAddr) -> BoxFuture<'static, Result<JoinReply, String>> {
        let admission = self.clone();
        Box::pin(async move {
            let outcome = admission.admit(request).await;
            match &outcome {
                Ok(reply) => tracing::info!(node = %reply.name, number = %reply.number, %from, "node joined"),
                Err(reason) => tracing::warn!(%from, reason, "join refused"),
            }
            outcome
        })
    }
}

impl Admission {
    async fn admit(&self, request: JoinRequest) -> Result<JoinReply, String> {
        let invalid = || "the join token is not valid; make a new one with `skein node token`".to_owned();
        let (token, secret_hash) = token::presented(&request).ok_or_else(invalid)?;
        // The key is read before anything is spent: a request that can't be signed costs no use.
        let key = Authority::request_key(&request.csr).map_err(|error| error.to_string())?;
        let settings = self.registry.state().settings().cloned().ok_or("this node knows no cluster yet")?;
        let authority = Authority::open(&settings.authority, &settings.authority_key, &self.data_key)
            .map_err(|error| error.to_string())?;
        let command = Command::AddNode {
            token,
            secret_hash,
            name: request.name,
            region: request.region,
            key,
            backhaul: request.backhaul,
        };
        let (number, name) = match self.registry.propose(command).await {
            Ok((Outcome::Node(number, name), _)) => (number, name),
            Ok((other, _)) => return Err(format!("the registry answered {other:?} to a join")),
            Err(error) => return Err(error.to_string()),
        };
        let certificate = authority.sign(&request.csr, number).map_err(|error| error.to_string())?;
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
