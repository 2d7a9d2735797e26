// Checks dashboards against the types of Grafana: node typecheck.mjs <file.json>…
// Prints what is wrong and ends with 1 when something is.
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const here = dirname(fileURLToPath(import.meta.url));
const options = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  types: [],
};

// A literal of the declared type: so that unknown keys are faults too, which they are not in a value from elsewhere.
const sources = new Map(
  process.argv.slice(2).map((file) => [
    join(here, `${basename(file)}.ts`),
    `import type { Dashboard } from "./dashboard.types";\nexport const dashboard: Dashboard = ${readFileSync(file, "utf8")};\n`,
  ]),
);
const host = ts.createCompilerHost(options);
const { readFile, fileExists, getSourceFile } = host;
host.readFile = (name) => sources.get(name) ?? readFile.call(host, name);
host.fileExists = (name) => sources.has(name) || fileExists.call(host, name);
host.getSourceFile = (name, version, ...rest) =>
  sources.has(name) ? ts.createSourceFile(name, sources.get(name), version) : getSourceFile.call(host, name, version, ...rest);

const program = ts.createProgram([...sources.keys()], options, host);
const faults = ts.getPreEmitDiagnostics(program);
if (faults.length > 0) {
  const format = { getCanonicalFileName: (name) => name, getCurrentDirectory: () => here, getNewLine: () => "\n" };
  process.stdout.write(ts.formatDiagnostics(faults, format));
}
process.exit(faults.length > 0 ? 1 : 0);
