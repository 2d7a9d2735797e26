// What a dashboard of ours is: Grafana's own types, without the holes through which anything would pass.
import type { AnnotationQuery, Dashboard as AnyDashboard, DataQuery, FieldConfig, Panel as AnyPanel, VariableModel } from "@grafana/schema";
import type * as gauge from "@grafana/schema/dist/esm/raw/composable/gauge/panelcfg/x/GaugePanelCfg_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as states from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** JSON has the values of enums, not their names. */
type Json<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends (infer U)[]
      ? Json<U>[]
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

interface Query extends Required<Pick<DataQuery, "refId">> {
  datasource: { type: "prometheus"; uid: "${datasource}" };
  editorMode: "code" | "builder";
  expr: string;
  format: "time_series" | "table" | "heatmap";
  instant: boolean;
  range: boolean;
  legendFormat: string;
}

/** A unit for the series of one query. */
interface Override {
  matcher: { id: "byFrameRefID"; options: string };
  properties: { id: "unit"; value: string }[];
}

type Kind<Type extends string, Options, Custom> = Json<
  Omit<AnyPanel, "type" | "options" | "fieldConfig" | "targets" | "datasource"> & {
    type: Type;
    title: string;
    description: string;
    datasource: Query["datasource"];
    options: Options;
    fieldConfig: { defaults: Omit<FieldConfig, "custom"> & { unit: string; custom: Custom }; overrides: Override[] };
    targets: Query[];
  }
>;

type Panel =
  | Kind<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | Kind<"stat", stat.Options, Record<string, never>>
  | Kind<"gauge", gauge.Options, Record<string, never>>
  | Kind<"state-timeline", states.Options, states.FieldConfig>
  | Kind<"table", table.Options, table.FieldConfig>
  | Kind<"heatmap", heatmap.Options, heatmap.FieldConfig>;

type Annotation = Json<
  Omit<AnnotationQuery, "target"> & {
    target: { refId: string; expr: string; range: boolean; instant: boolean };
    titleFormat: string;
    useValueForTime?: boolean;
  }
>;

export type Dashboard = Json<Omit<AnyDashboard, "panels" | "annotations" | "templating">> & {
  uid: string;
  panels: Panel[];
  annotations: { list: Annotation[] };
  templating: { list: Json<VariableModel>[] };
};
