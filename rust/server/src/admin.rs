//! The calls of `AccountService`, and the list of what is open.

use crate::access::Caller;
use crate::convert;
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::v1;

type Reply<T> = Result<Answer<T>, ApiError>;

/// The page that a caller gets who names none, and the largest.
const PAGE: (usize, usize) = (100, 1000);

impl Engine {
    /// Does what an operator asks for, and notes who asked; both are durable before the answer.
    pub(crate) fn operate<T>(
        &self,
        by: &Caller,
        account: &str,
        what: &str,
        act: impl FnOnce(&Engine) -> Reply<T>,
    ) -> Reply<T> {
        let before = self.ledger.account_id(account); // afterwards it may have retired
        let mut answer = act(self)?;
        if let Some(id) = before.or_else(|| self.ledger.account_id(account)) {
            let detail = format!("{}: {what}", by.name);
            answer.ticket = answer.ticket.max(self.ledger.note_operated(id, detail, self.now()));
        }
        Ok(answer)
    }

    /// Notes who did what that changed no account, at the accounts that it is about. Returns what must
    /// be durable.
    pub(crate) fn note(&self, by: &Caller, account: &str, what: &str) -> u64 {
        let noted =
            self.ledger.nearest(account).into_iter().map(|id| {
                self.ledger.note_operated(id, format!("{}: {what}", by.name), self.now())
            });
        noted.max().unwrap_or(0)
    }

    /// What a change of a limit is called where it is noted.
    pub(crate) fn limit_change(&self, budget: &v1::Budget) -> String {
        let Ok(spec) = convert::budget_spec(budget) else { return String::new() }; // is refused
        let before = self.ledger.limit(&budget.account, spec.unit, &spec.period);
        let before = before.map_or("none".to_owned(), |limit| limit.to_string());
        let (unit, period) = (spec.unit.name(), spec.period);
        format!("set a limit of {} {unit}, period {period}; before: {before}", budget.limit)
    }

    pub(crate) fn set_budget(
        &self,
        request: &v1::SetBudgetRequest,
    ) -> Reply<v1::SetBudgetResponse> {
        self.check_open()?;
        let budget = request.budget.as_ref();
        let budget = budget.ok_or_else(|| ApiError::field("budget", "is missing"))?;
        let spec = convert::budget_spec(budget)?;
        let (balance, ticket) = self.ledger.set_budget(&budget.account, spec, self.now())?;
        let balance = Some(convert::balance(&balance));
        Ok(Answer::new(v1::SetBudgetResponse { balance }, ticket))
    }

    pub(crate) fn get_account(
        &self,
        request: &v1::GetAccountRequest,
    ) -> Reply<v1::GetAccountResponse> {
        let view = self.ledger.account(convert::path(&request.account)?, self.now())?;
        let budget = |spec| convert::budget(&view.path, spec);
        let body = v1::GetAccountResponse {
            budgets: view.budgets.iter().map(budget).collect(),
            account: Some(convert::account(&view)),
        };
        Ok(Answer::new(body, 0))
    }

    pub(crate) fn list_accounts(
        &self,
        request: &v1::ListAccountsRequest,
    ) -> Reply<v1::ListAccountsResponse> {
        let size = page_size(request.page_size, PAGE)?;
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        let within = convert::within(&request.account)?;
        // One more than the page tells whether there is another.
        let mut views = self.ledger.accounts(within, after, size + 1, self.now());
        let more = views.len() > size;
        views.truncate(size);
        let last = views.last().filter(|_| more);
        let body = v1::ListAccountsResponse {
            next_page_token: last.map(|view| view.path.to_string()).unwrap_or_default(),
            accounts: views.iter().map(convert::account).collect(),
        };
        Ok(Answer::new(body, 0))
    }

    pub(crate) fn list_reservations(
        &self,
        request: &v1::ListReservationsRequest,
    ) -> Reply<v1::ListReservationsResponse> {
        let (size, now) = (page_size(request.page_size, PAGE)?, self.now());
        let within = convert::within(&request.account)?;
        let open = self.ledger.open_reservations(within, size, now).shown;
        let reservations = open.iter().map(|(view, debiting)| v1::OpenReservation {
            reservation: Some(self.reservation_message(view, now.wall_ms)),
            debiting: convert::debiting(*debiting).into(),
        });
        let body = v1::ListReservationsResponse { reservations: reservations.collect() };
        Ok(Answer::new(body, 0))
    }

    pub(crate) fn freeze(&self, request: &v1::FreezeRequest) -> Reply<v1::FreezeResponse> {
        if request.reason.len() > convert::MAX_TEXT {
            let message = format!("longer than {} bytes", convert::MAX_TEXT);
            return Err(ApiError::field("reason", message));
        }
        let (account, ticket) = self.set_frozen(&request.account, true, &request.reason)?;
        Ok(Answer::new(v1::FreezeResponse { account: Some(account) }, ticket))
    }

    pub(crate) fn unfreeze(&self, request: &v1::UnfreezeRequest) -> Reply<v1::UnfreezeResponse> {
        let (account, ticket) = self.set_frozen(&request.account, false, "")?;
        Ok(Answer::new(v1::UnfreezeResponse { account: Some(account) }, ticket))
    }

    pub(crate) fn retire_account(
        &self,
        request: &v1::RetireAccountRequest,
    ) -> Reply<v1::RetireAccountResponse> {
        self.check_open()?;
        let ticket = self.ledger.retire(convert::path(&request.account)?, self.now())?;
        Ok(Answer::new(v1::RetireAccountResponse {}, ticket))
    }

    fn set_frozen(
        &self,
        path: &str,
        frozen: bool,
        reason: &str,
    ) -> Result<(v1::Account, u64), ApiError> {
        self.check_open()?;
        let now = self.now();
        let ticket = self.ledger.set_frozen(path, frozen, reason, now)?;
        Ok((convert::account(&self.ledger.account(path, now)?), ticket))
    }
}

/// The page size asked for, within its bounds.
pub(crate) fn page_size(asked: i32, (default, max): (usize, usize)) -> Result<usize, ApiError> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(size) if size <= max => Ok(size),
        _ => Err(ApiError::field("page_size", format!("has to be from 0 to {max}"))),
    }
}
