//! OTLP over gRPC.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::{MAX_MESSAGE, Store, convert};

struct Service(Store);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (spans, rejected) = convert::spans(request.into_inner());
        self.0.add(spans);
        Ok(Response::new(convert::response(rejected)))
    }
}

pub(super) async fn serve(listener: TcpListener, store: Store) {
    let service = TraceServiceServer::new(Service(store))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_MESSAGE);
    let incoming = TcpIncoming::from(listener);
    let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC receiver of traces ended");
    }
}
