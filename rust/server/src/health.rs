//! What `grpc.health.v1.Health` says: every service serves, until the store fails.
//!
//! From then on the ledger's does not: it only reads, and a restart is what helps. Who watches hears
//! of it within a second.

use std::sync::Arc;
use std::time::Duration;

use tonic_health::pb::health_server::{Health, HealthServer};

use crate::engine::Engine;
use crate::grpc::Api;
use crate::v1::access_service_server::AccessServiceServer;
use crate::v1::account_service_server::AccountServiceServer;
use crate::v1::ledger_service_server::LedgerServiceServer;
use crate::v1::process_service_server::ProcessServiceServer;

const LOOK: Duration = Duration::from_secs(1);

/// The service for one data-plane thread; it ends with the thread's runtime.
pub(crate) async fn service(engine: &Arc<Engine>) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_serving::<LedgerServiceServer<Api>>().await;
    reporter.set_serving::<AccountServiceServer<Api>>().await;
    reporter.set_serving::<ProcessServiceServer<Api>>().await;
    reporter.set_serving::<AccessServiceServer<Api>>().await;
    let engine = Arc::downgrade(engine);
    tokio::spawn(async move {
        // A failure is for good, so one report is enough.
        while let Some(engine) = engine.upgrade() {
            if engine.failure().is_some() {
                return reporter.set_not_serving::<LedgerServiceServer<Api>>().await;
            }
            drop(engine);
            tokio::time::sleep(LOOK).await;
        }
    });
    service
}
