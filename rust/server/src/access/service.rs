//! `AccessService` on the wire.

use tonic::Request;

use super::vault::{Order, Token};
use super::{Act, Role};
use crate::convert;
use crate::engine::Answer;
use crate::error::ApiError;
use crate::grpc::{Answered, Api};
use crate::v1::access_service_server::AccessService;
use crate::v1::{self, ErrorReason};

const LONGEST_MS: i64 = 3660 * 86_400_000;
const NAME_MAX: usize = 64;

#[tonic::async_trait]
impl AccessService for Api {
    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Answered<v1::WhoAmIResponse> {
        let caller = self.caller(&request)?;
        let expires = caller.expires_ms().map(convert::timestamp);
        let principal = v1::Principal {
            name: caller.name.to_string(),
            role: caller.role.to_wire(),
            account: caller.account.to_string(),
            expire_time: expires,
        };
        Ok(tonic::Response::new(v1::WhoAmIResponse { principal: Some(principal) }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answered<v1::CreateTokenResponse> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        convert::within(&request.account)?;
        caller.may(Act::Manage, &request.account)?;
        let role = Role::of_wire(request.role);
        let role = role.ok_or_else(|| ApiError::field("role", "is missing, or is none"))?;
        let ttl = request.ttl.ok_or_else(|| ApiError::field("ttl", "is missing"))?;
        let order = Order {
            name: checked_name(request.name)?,
            role,
            account: request.account,
            creator: caller.name.to_string(),
            ttl_ms: convert::duration_ms("ttl", &ttl, LONGEST_MS)?,
        };
        let access = std::sync::Arc::clone(&self.access);
        self.aside(move |engine| {
            let (token, secret) = access.vault.create(order, engine.now().wall_ms)?;
            let ticket = engine.note(&caller, &token.account, &about("made", &token));
            Ok(Answer::new(v1::CreateTokenResponse { token: Some(shown(&token)), secret }, ticket))
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Answered<v1::ListTokensResponse> {
        let caller = self.caller(&request)?;
        let asked = convert::within(&request.get_ref().account)?;
        caller.may_act(Act::Manage)?;
        let within = caller.narrow(asked)?;
        let is_meant = |token: &&std::sync::Arc<Token>| {
            within.is_empty() || bursar_ledger::path::is_within(&token.account, &within)
        };
        let tokens = self.access.vault.list();
        let tokens = tokens.iter().filter(is_meant).map(|token| shown(token)).collect();
        Ok(tonic::Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Answered<v1::RevokeTokenResponse> {
        let caller = self.caller(&request)?;
        caller.may_act(Act::Manage)?;
        let id = request.into_inner().id;
        let token = self.access.vault.get(&id);
        // Another's is none: who may not see a token does not learn that there is one.
        let token = token.filter(|token| caller.may(Act::Manage, &token.account).is_ok());
        let token = token.ok_or_else(|| {
            let message = format!("there is no token {:?}", convert::cut(&id));
            ApiError::new(ErrorReason::TokenNotFound, message)
        })?;
        let access = std::sync::Arc::clone(&self.access);
        self.aside(move |engine| {
            let ended = access.vault.revoke(&token, engine.now().wall_ms);
            access.end_reserved(engine);
            let ended = ended?;
            let ticket = engine.note(&caller, &token.account, &about("revoked", &token));
            Ok(Answer::new(v1::RevokeTokenResponse { token: Some(shown(&ended)) }, ticket))
        })
        .await
    }
}

/// What was done to a token, for the history.
fn about(done: &str, token: &Token) -> String {
    let Token { id, name, role, account, .. } = token;
    let place = if account.is_empty() { "all accounts" } else { account };
    format!("{done} the token {id} ({name}), {} of {place}", role.name())
}

fn checked_name(name: String) -> Result<String, ApiError> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_good) {
        return Ok(name);
    }
    Err(ApiError::field("name", format!("write 1 to {NAME_MAX} letters, digits and ._-")))
}

fn shown(token: &Token) -> v1::Token {
    v1::Token {
        id: token.id.clone(),
        name: token.name.clone(),
        role: token.role.to_wire(),
        account: token.account.clone(),
        creator: token.creator.clone(),
        create_time: Some(convert::timestamp(token.created_ms)),
        expire_time: Some(convert::timestamp(token.expires_ms)),
        revoke_time: token.revoked_ms.map(convert::timestamp),
    }
}
