"""Metrics for a Prometheus on another host, configured as the page that installs shows it."""

import re
import ssl
import tomllib
from pathlib import Path

import httpx
from support.certificates import Authority
from support.scraped import Scraped


def test_a_scraper_shows_a_certificate_that_is_known(project: Path, tmp_path: Path) -> None:
    page = (project / "sidecar/README.md").read_text(encoding="utf-8")
    [shown] = [one for one in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "7413" in one]
    config = tomllib.loads(shown)
    authority = Authority(tmp_path)
    pair = authority.issue("server", addresses=["127.0.0.1"], server=True)
    tls = config["server"]["tls"]
    assert set(tls) == {"certificate", "key", "client_ca"}
    tls |= {"certificate": str(pair.certificate), "key": str(pair.key)}
    tls |= {"client_ca": str(authority.path)}
    address = {"listen": config["metrics"]["listen"].replace("7413", "0")}
    config["metrics"] |= address
    with Scraped(in_memory=True, **config) as daemon:
        url = re.sub(r"//[^:]+", "//127.0.0.1", daemon.url)

        def scraped(name: str | None) -> int:
            trusting = ssl.create_default_context(cafile=str(authority.path))
            if name is not None:
                own = authority.issue(name, common_name=name)
                trusting.load_cert_chain(own.certificate, own.key)
            return httpx.get(url, verify=trusting).status_code

        known = config["access"]["certificate"][0]["common_name"]
        assert [scraped(known), scraped("somebody"), scraped(None)] == [200, 401, 401]
