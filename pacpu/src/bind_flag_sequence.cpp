#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "flag_sequence.h"

namespace py = pybind11;

namespace pacpu {
namespace {

// Keeps the flags and the plans alive for as long as workers may touch them: the destructor ends the sequence first.
struct OwningFlagSequence {
    using Step = std::tuple<LayerSource*, int64_t, int64_t, int64_t>;

    py::object flags, plans;
    FlagSequence sequence;

    OwningFlagSequence(std::shared_ptr<WorkerPool> pool, uintptr_t ready, uintptr_t done, int64_t num_slots,
                       py::object owner_of_flags)
        : flags(std::move(owner_of_flags)),
          sequence(std::move(pool), reinterpret_cast<uint32_t*>(ready), reinterpret_cast<uint32_t*>(done), num_slots) {}

    void arm(const std::vector<Step>& steps, double timeout_s, py::object owners_of_sources) {
        std::vector<FlagStep> native;
        native.reserve(steps.size());
        for (const auto& [source, layer, slot, sub_batch] : steps) native.push_back({source, layer, slot, sub_batch});
        const auto timeout = std::chrono::duration<double>(timeout_s);
        sequence.arm(std::move(native), std::chrono::duration_cast<std::chrono::nanoseconds>(timeout));
        plans = std::move(owners_of_sources);
    }
};

}  // namespace

void bind_flag_sequence(py::module_& module) {
    py::register_exception<LostFlag>(module, "LostFlagError", PyExc_TimeoutError);
    py::class_<LayerSource, std::unique_ptr<LayerSource, py::nodelete>>(module, "LayerSource");
    py::class_<OwningFlagSequence>(module, "FlagSequence")
        .def(py::init<std::shared_ptr<WorkerPool>, uintptr_t, uintptr_t, int64_t, py::object>(), py::arg("pool"),
             py::kw_only(), py::arg("ready"), py::arg("done"), py::arg("num_slots"), py::arg("owners"))
        .def("arm", &OwningFlagSequence::arm, py::arg("steps"), py::kw_only(), py::arg("timeout_s"), py::arg("owners"))
        .def(
            "wait", [](OwningFlagSequence& self) { self.sequence.wait(); }, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("busy_ns", [](const OwningFlagSequence& self) { return self.sequence.busy_ns(); })
        .def("cancel", [](OwningFlagSequence& self) { self.sequence.cancel(); });
}

}  // namespace pacpu
