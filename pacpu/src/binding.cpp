// The Python module. neobench.pacpu checks the arrays before they get here; nothing here is public.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "bindings.h"
#include "decode_plan.h"
#include "kernel.h"
#include "worker_pool.h"

namespace py = pybind11;

namespace pacpu {
namespace {

// Keeps the Python arrays alive for as long as workers may touch them: the plan's destructor waits for the workers.
struct OwningPlan {
    py::object owners;
    DecodePlan plan;

    OwningPlan(std::shared_ptr<WorkerPool> pool, PlanArrays arrays, const KvLayout& layout, float scale,
               const std::string& target, py::object owners_of_arrays)
        : owners(std::move(owners_of_arrays)),
          plan(std::move(pool), std::move(arrays), layout, scale, find_target(target)) {}

    void start(int64_t layer) {
        py::gil_scoped_release release;  // a full queue makes it wait
        plan.start(layer);
    }
    void wait() {
        py::gil_scoped_release release;
        plan.wait();
    }
    void run(int64_t layer) {
        start(layer);
        wait();
    }
};

Element parse_element(const std::string& dtype) {
    if (dtype == "float16") return Element::kFloat16;
    if (dtype == "bfloat16") return Element::kBFloat16;
    if (dtype == "int8") return Element::kInt8;
    return Element::kFloat32;
}

ArrayView make_view(uintptr_t data, std::vector<int64_t> shape, std::vector<int64_t> strides_bytes,
                    const std::string& dtype) {
    return {reinterpret_cast<char*>(data), std::move(shape), std::move(strides_bytes), parse_element(dtype)};
}

KvLayout make_layout(const std::string& dtype, int64_t head_dim, int64_t block_size) {
    return {parse_element(dtype), head_dim, block_size};
}

std::unique_ptr<OwningPlan> make_plan(std::shared_ptr<WorkerPool> pool, ArrayView kv, const KvLayout& layout,
                                      ArrayView query, std::optional<ArrayView> new_key,
                                      std::optional<ArrayView> new_value, ArrayView output, ArrayView block_tables,
                                      ArrayView context_lens, ArrayView workspace, float scale,
                                      const std::string& target, py::object owners) {
    PlanArrays arrays{std::move(kv),     std::move(query),        std::move(new_key),      std::move(new_value),
                      std::move(output), std::move(block_tables), std::move(context_lens), std::move(workspace)};
    return std::make_unique<OwningPlan>(std::move(pool), std::move(arrays), layout, scale, target, std::move(owners));
}

std::vector<std::string> runnable_target_names() {
    std::vector<std::string> names;
    for (const Target* target : runnable_targets()) names.emplace_back(target->name);
    return names;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = PACPU_COMPILER;
#ifdef PACPU_WITH_ISPC
    info["ispc"] = PACPU_ISPC_VERSION;
#else
    info["ispc"] = py::none();
#endif
    info["compiled_targets"] = py::tuple(py::cast(compiled_target_names()));
    return info;
}

int64_t recommended_workspace_bytes(int64_t max_rows, int64_t num_q_heads, int64_t head_dim, int64_t max_context,
                                    int64_t num_threads) {
    return WorkspaceShape{num_q_heads, head_dim}.recommended_bytes(max_rows, max_context, num_threads);
}

}  // namespace

PYBIND11_MODULE(_pacpu, module) {
    module.def("targets", &runnable_target_names);
    module.def("build_info", &build_info);
    module.def("workspace_bytes", &recommended_workspace_bytes, py::kw_only(), py::arg("max_rows"),
               py::arg("num_q_heads"), py::arg("head_dim"), py::arg("max_context"), py::arg("num_threads"));

    py::class_<KvLayout>(module, "KvLayout")
        .def(py::init(&make_layout), py::kw_only(), py::arg("dtype"), py::arg("head_dim"), py::arg("block_size"))
        .def_property_readonly("piece_bytes", &KvLayout::piece_bytes);

    py::class_<ArrayView>(module, "ArrayView")
        .def(py::init(&make_view), py::kw_only(), py::arg("data"), py::arg("shape"), py::arg("strides_bytes"),
             py::arg("dtype"));

    py::class_<WorkerPool, std::shared_ptr<WorkerPool>>(module, "Pool")
        .def(py::init<int, const std::vector<int>&>(), py::arg("num_threads"), py::arg("cpus"))
        .def_property_readonly("num_threads", &WorkerPool::num_threads)
        .def("close", &WorkerPool::close, py::call_guard<py::gil_scoped_release>());

    bind_flag_sequence(module);

    py::class_<OwningPlan>(module, "Plan")
        .def(py::init(&make_plan), py::arg("pool"), py::kw_only(), py::arg("kv"), py::arg("layout"), py::arg("query"),
             py::arg("new_key").none(true), py::arg("new_value").none(true), py::arg("output"), py::arg("block_tables"),
             py::arg("context_lens"), py::arg("workspace"), py::arg("scale"), py::arg("target"), py::arg("owners"))
        .def_property_readonly("target", [](const OwningPlan& self) { return self.plan.target().name; })
        .def_property_readonly("finished_ns", [](const OwningPlan& self) { return self.plan.finished_ns(); })
        .def_property_readonly(
            "source", [](OwningPlan& self) -> LayerSource& { return self.plan; },
            py::return_value_policy::reference_internal)
        .def("begin", [](OwningPlan& self, int64_t num_rows) { self.plan.begin(num_rows); })
        .def("run", &OwningPlan::run)
        .def("start", &OwningPlan::start)
        .def("wait", &OwningPlan::wait);

    bind_kv_memory(module);
    bind_read_bandwidth(module);
}

}  // namespace pacpu
