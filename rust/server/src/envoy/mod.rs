//! Envoy's rate limit service, from the same ledger.
//!
//! `rules` makes of a descriptor what is to be charged, `limits` charges it, `answer` writes what Envoy
//! and its clients hear. What a request does is refused by `OVER_LIMIT` and never by an error: with
//! Envoy's defaults an error lets the request through, and descriptors carry what clients send.

mod answer;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod limits;
mod rules;

use std::sync::Arc;

use tonic::Request;

use crate::grpc::{Answered, Api};
use crate::metrics::Descriptors;
pub(crate) use rules::EnvoySection;
use rules::Rules;
use wire::rate_limit_service_server::RateLimitService;
pub(crate) use wire::rate_limit_service_server::RateLimitServiceServer;
use wire::{RateLimitRequest, RateLimitResponse};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct RateLimits {
    api: Api,
    rules: Arc<Rules>,
    pub(crate) counts: Arc<Descriptors>,
}

impl RateLimits {
    pub(crate) fn new(api: &Api, rules: Rules) -> RateLimits {
        let counts = Arc::new(Descriptors::new(rules.len()));
        RateLimits { api: api.clone(), rules: Arc::new(rules), counts }
    }
}

#[tonic::async_trait]
impl RateLimitService for RateLimits {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Answered<RateLimitResponse> {
        let caller = self.api.caller(&request)?;
        let ask = (&*self.rules, &*self.counts);
        let answer =
            |engine: &_| limits::should_rate_limit(engine, ask, &caller, request.get_ref());
        self.api.answer(answer).await
    }
}

/// The wire types, generated from `proto/envoy`; their modules lie as their packages do, since they
/// name each other so.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "generated code; the proto files are its documentation"
)]
mod generated {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod extensions {
        pub mod common {
            pub mod ratelimit {
                pub mod v3 {
                    tonic::include_proto!("envoy.extensions.common.ratelimit.v3");
                }
            }
        }
    }
    pub mod service {
        pub mod ratelimit {
            pub mod v3 {
                tonic::include_proto!("envoy.service.ratelimit.v3");
            }
        }
    }
}

/// What of them is used.
mod wire {
    pub(crate) use super::generated::config::core::v3::*;
    pub(crate) use super::generated::extensions::common::ratelimit::v3::*;
    pub(crate) use super::generated::service::ratelimit::v3::*;
}

/// The compiled proto files, for reflection.
pub(crate) const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/envoy_descriptors.bin"));
