// Which browser the suites drive: that of CHROMIUM, or of Debian's packages.
import { existsSync } from "node:fs";

export const BROWSER_ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Where the browser is; ends the suite where there is none. */
export function browserPath() {
  const paths = [process.env.CHROMIUM, "/usr/bin/chromium-headless-shell", "/usr/bin/chromium"];
  const found = paths.find((path) => path && existsSync(path));
  if (found) return found;
  console.log("not ok - no browser: `make deps` installs chromium-headless-shell");
  process.exit(1);
}
