// What a flag sequence starts: attention, layer by layer. Knows neither the pool nor attention.
#pragma once

#include <cstdint>

namespace pacpu {

class LayerSource {
  public:
    // Hands the layer's work to the pool. Its last item raises the done flag; where there is no work this call does.
    virtual void start(int64_t layer, uint32_t* done_flag) = 0;
    // Returns when the started layer is complete; throws what its work threw.
    virtual void wait() = 0;
    // When the layer that was last waited for was complete: nanoseconds of the steady clock, 0 if it had no work.
    virtual int64_t finished_ns() const = 0;

  protected:
    ~LayerSource() = default;
};

}  // namespace pacpu
